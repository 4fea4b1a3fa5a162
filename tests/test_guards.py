"""The rules of conftest.py hold: each is broken once, in a run of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_pytest(folder: Path, test: str, *, ci: bool = False) -> tuple[int, str]:
    (folder / "conftest.py").write_text((HERE / "conftest.py").read_text())
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_tornado.plugin", folder],
        # Importing all plug-ins takes half of the time of such a run.
        env={"PATH": "/usr/bin:/bin", "CI": str(ci).lower(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return done.returncode, done.stdout


NEEDS_A_PROGRAM = "def test_it(require_program):\n    require_program('no-such-program')\n"
SKIPPED_FILE = "import pytest\npytest.skip('not today', allow_module_level=True)\n"
NOT_PERMITTED = "import pytest\ndef test_it(): pytest.skip('not permitted here: networks')\ndef test_another(): pass\n"
LOGS = "import logging\ndef test_it():\n    logging.getLogger('tornado.general').{level}('it broke')\n"
EXPECTS = "import logging\ndef test_it(expect_log):\n    expect_log('it .*', logger='a')\n"


@pytest.mark.parametrize(
    ("test", "ci", "status", "said"),
    [
        pytest.param("def test_it(): pass\n", True, 0, "1 tests were executed", id="a good test passes"),
        pytest.param(NEEDS_A_PROGRAM, True, 1, "needs the program no-such-program", id="a missing program fails in CI"),
        pytest.param(NEEDS_A_PROGRAM, False, 5, "0 tests were executed", id="a run of skipped tests is not well"),
        pytest.param(SKIPPED_FILE, True, 2, "not today", id="a skipped file fails in CI"),
        pytest.param(NOT_PERMITTED, True, 0, "1 skipped", id="what a machine forbids is skipped in CI too"),
        pytest.param(LOGS.format(level="warning"), False, 1, "WARNING tornado.general: it broke", id="a warning fails"),
        pytest.param(LOGS.format(level="info"), False, 0, "1 passed", id="information does not"),
        pytest.param(EXPECTS, False, 1, "no log record matches 'it .*'", id="an expected record must come"),
        pytest.param(EXPECTS + "    logging.getLogger('a.b').error('it broke')\n", False, 0, "1 passed", id="it came"),
        pytest.param(
            EXPECTS + "    logging.getLogger('ab').error('it broke')\n", False, 1, "ERROR ab", id="from somebody else"
        ),
        pytest.param(
            "import asyncio, pytest\n@pytest.mark.gen_test\nasync def test_it():\n"
            "    global task\n    task = asyncio.create_task(asyncio.sleep(60))\n",
            False,
            1,
            "tasks left behind",
            id="a leaked task fails",
        ),
    ],
)
def test_guard(tmp_path: Path, test: str, ci: bool, status: int, said: str) -> None:
    got, output = run_pytest(tmp_path, test, ci=ci)
    assert said in output
    assert got == status, output
