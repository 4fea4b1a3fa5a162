"""What is tried against the bounds of docs/security.md, scaled down: memory, turns of the loop, and what others wait.

Time is CPU time of the server's main thread, so that other programs on the machine make no difference: a turn of the
loop is measured by watched.py, and the wait of others by others.py. What remains of chance only adds to it. So each
strain is done up to three times, and has to keep the bounds once.
"""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from coverage import Coverage

from tests.documents import ROOT
from tests.hostile.measuring import Measured, Strain, measure
from tests.hostile.strains import STRAINS

MIB = 1024 * 1024
TIMES = 3
# By which memory may differ from what the settings say.
TOLERANCE = 1.5
# What a server costs more whose coverage is measured.
SLOWER = 1 if Coverage.current() is None else 5
# Those that need a server of a broker are measured by benchmarks/bounds.py; other tests hold them.
HERE = [name for name, strain in STRAINS.items() if strain.engine is None]


@pytest.fixture(autouse=True)
def descriptors() -> None:
    """As many for the clients as there may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def broken(strain: Strain, measured: Measured) -> list[str]:
    """Which of its bounds did not hold."""
    bounds = {
        "memory in MiB": (measured.memory / MIB, TOLERANCE * strain.memory_mib),
        "longest turn of the loop in s": (measured.hold_cpu, SLOWER * strain.turn_seconds),
        "longest wait for /health in s": (measured.health_cpu, SLOWER * strain.wait_seconds),
        "longest wait of a stream in s": (measured.stream_cpu, SLOWER * strain.wait_seconds),
        "feeds for equal streams": (measured.seen.get("feeds", 1), 1),
    }
    return [f"{what}: {value:.3f}, at most {bound:.3f}" for what, (value, bound) in bounds.items() if value > bound]


@pytest.mark.parametrize("name", HERE)
def test_others_wait_no_longer_and_memory_is_what_the_settings_say(name: str, tmp_path: Path) -> None:
    found = []
    for time in range(TIMES):
        folder = tmp_path / str(time)
        folder.mkdir()
        found = broken(STRAINS[name], measure(STRAINS[name], folder, is_full=False))
        if not found:
            return
    pytest.fail("\n".join(found), pytrace=False)


def test_the_page_has_what_was_measured_of_each() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    measured = page.partition("\n### What was measured\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in measured.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(STRAINS)
