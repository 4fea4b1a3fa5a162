"""Breaks the code in every small way that mutmut knows, and says which of them no test sees.

    make mutants                                   # every module of TESTS
    python tests/mutants.py delivery.feed limits   # these
    python tests/mutants.py --keep /tmp/m limits   # the copy stays: there `mutmut show NAME` and `mutmut browse` work

It works on a copy of the project, with the fast tests that belong to a module and nothing else: what only the tests
of whole processes see is found too late. The exit status is 0 if nothing survived but what makes no difference (EQUAL).
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("qgstream", "tests", "conf", "docs", "deploy", "pyproject.toml", "setup.py", "README.md")

# For each module the tests that are to see what is wrong with it.
TESTS: dict[str, tuple[str, ...]] = {
    "delivery.feed": ("delivery/test_feed.py", "delivery/test_fanout.py", "delivery/test_router.py"),
    "delivery.subscriber": ("delivery/test_feed.py", "delivery/test_fanout.py"),
    "limits": ("test_limits.py",),
    "events.history": ("events/test_history.py",),
    "delivery.fanout": ("delivery/test_fanout.py",),
    "hub": ("test_hub.py",),
}
MEMORY_BYTES = 4 << 30  # a mutant that never stops appending ends here and not with the machine

# Mutants that nobody could see: for each module why, and the lines that mutmut wrote.
EQUAL: dict[str, dict[str, tuple[str, ...]]] = {
    "delivery.feed": {
        "a slice of the whole list is as good as the list: it is there to save a copy": (
            'return b"".join(self._chunks[index:] if (index) or True else self._chunks), self.end',
        ),
    },
    "delivery.subscriber": {
        "read only while parked, and whoever parks writes it": ("self.parked_at = None", "self.parked_at = 1"),
        "a dict for its order: the values are nothing": ('feed.subscribers[self] = ""',),
    },
    "events.history": {
        "a holder of retention classes asks only whether it has changed": (
            "self.generation = 1",
            "self.generation += 2",
        ),
        "the next line but one builds them": ("self._classes: list[RetentionClass] = None",),
        "a short cut: the classes of an event's only topic, or in a window with one class, are that class": (
            "several = len(publication.topics) > 1 or len(self._classes) > 1",
            "several = len(publication.topics) >= 1 and len(self._classes) > 1",
            "several = len(publication.topics) > 1 and len(self._classes) >= 1",
            "for concerned in self._classes_of_topics(publication) if (several) or True else (retention_class,):",
        ),
        "the list may be rewritten one event sooner": ("if self._gone >= len(self):",),
        "behind the end there is nothing, and that is a page without events": ("while index <= len(self._log):",),
    },
    "delivery.fanout": {
        "the instant itself, of a clock that does not stop at it": (
            "if self._due == 1 or now - self._told_at >= TELL_SECONDS:",
        ),
        "whoever is dropped settles its feed, and with that the shedding goes on": ("return bool(None)",),
        "written again before they are read, because no cursor is NOWHERE": (
            'start, end, data = NOWHERE, 1, b""',
            'start, end, data = NOWHERE, 0, b"XXXX"',
        ),
        "no cursor is None either": ("start = None",),
        "a dict for its order: the values are nothing": ('self._unsettled[feed] = ""',),
    },
    "hub": {
        "an epoch has no hyphen in it": ('offset = int(last_event_id.partition("-")[2])',),
        "a connection that is closed has a reason": (
            'reason = connection.reason or "XXserver_errorXX"',
            'reason = connection.reason or "SERVER_ERROR"',
        ),
        "a connection with a closing message has a reason already, and the first one stands": (
            "connection.close(None)",
            'connection.close("XXclientXX")',
            'connection.close("CLIENT")',
        ),
        "`Connection.end` does nothing a second time either": (
            "if not connection.is_open and connection.reason is not None:",
        ),
        "for the reader and the type checker": (
            'self.end(cast(None, subscriber), "slow_consumer")',
            'cast(None, subscriber).close("server_error")',
        ),
    },
}

# mutmut leaves decorated functions alone, properties among them. Written like this they are functions like any other.
PROPERTY = re.compile(r"^( +)@(property|\w+\.setter)\n +def (\w+)(.*:\n(?:(?:\1 +.*)?\n)+)", re.MULTILINE)


def undecorated(source: str) -> str:
    """The same source with `name = property(_get_name)` for `@property`."""

    def rewritten(found: re.Match[str]) -> str:
        indent, decorator, name, rest = found.groups()
        function = f"_{'get' if decorator == 'property' else 'set'}_{name}"
        return f"{indent}def {function}{rest}{indent}{name} = {decorator}({function})\n\n"

    return PROPERTY.sub(rewritten, source)


# Time says nothing on a machine that does other things: a wall clock's limit is for loops without an end. What an
# example looks like at its smallest nobody wants to know here.
SETTINGS = """
[tool.mutmut]
source_paths = ["qgstream"]
only_mutate = ["{path}"]
pytest_add_cli_args = ["-o", "timeout=0", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
pytest_add_cli_args_test_selection = [{tests}]
also_copy = ["conf", "docs", "deploy", "setup.py", "README.md"]
timeout_constant = 15.0
timeout_multiplier = 4.0
use_git_change_detection = false
"""
PROFILE = """
hypothesis.settings.register_profile(
    "mutants", hypothesis.settings.get_profile("qgstream"), derandomize=True, database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
"""


def path_of(module: str) -> Path:
    """The file of `delivery.feed`, below the project."""
    return Path("qgstream", *module.split(".")).with_suffix(".py")


def prepare(folder: Path, module: str) -> None:
    """Copy the project, with the settings for one module."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(source, target)
    tests = ", ".join(f'"tests/{name}"' for name in TESTS[module])
    with (folder / "pyproject.toml").open("a") as file:
        file.write(SETTINGS.format(path=path_of(module), tests=tests))
    with (folder / "tests" / "conftest.py").open("a") as file:
        file.write(PROFILE)
    path = folder / path_of(module)
    path.write_text(undecorated(path.read_text()))


def mutmut(folder: Path, *arguments: str) -> str:
    """Run it and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        env=os.environ | {"CI": "true"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"mutmut {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def written(diff: str) -> str:
    """The lines that a mutant has instead of the source's."""
    lines = re.findall(r"^\+ *(?!\+\+)(\S.*)", diff, re.MULTILINE)
    return " ".join([line.partition("  #")[0] for line in lines])


def hunt(folder: Path, module: str) -> int:
    """Try the mutants of one module, print those that were not seen and could be, and return how many."""
    prepare(folder, module)
    mutmut(folder, "run", "--max-children", "1")
    states = dict(re.findall(r"^ +(\S+): (.+)$", mutmut(folder, "results", "--all", "true"), re.MULTILINE))
    counts = Counter(states.values())
    equal = {line for lines in EQUAL.get(module, {}).values() for line in lines}
    diffs = [mutmut(folder, "show", name) for name, state in states.items() if state not in ("killed", "timeout")]
    unseen = [diff for diff in diffs if written(diff) not in equal]
    print(*unseen, sep="\n", end="")
    said = ", ".join(f"{count} {state}" for state, count in counts.items())
    print(f"{module}: {len(states)} mutants, {said}; {len(diffs) - len(unseen)} make no difference", flush=True)
    return len(unseen)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants of the modules that were named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the copies stay")
    options = parser.parse_args(arguments)
    unknown = set(options.modules) - set(TESTS)
    if unknown:
        parser.error(f"unknown modules: {', '.join(sorted(unknown))}; expected some of {', '.join(TESTS)}")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return sum([hunt(folder / module, module) for module in options.modules or TESTS]) and 1


if __name__ == "__main__":
    sys.exit(main())
