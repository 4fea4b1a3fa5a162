"""What strains of a stranger or a publisher cost, and what others wait meanwhile: the table in docs/security.md.

`python benchmarks/bounds.py`, or with names of strains (tests/hostile/strains.py) for these alone. To measure another
version, give the interpreter of an environment in which it is installed: `--python ../first/.venv/bin/python`.

Each strain has a server of its own and is done several times. Memory is the peak of the resident memory above the idle
server, the greatest of all times. Waits are the longest of one time, and the time with the shortest counts. `/health`
and `stream` are what somebody waited who asked for the one and held the other. What other programs did is
in these two, so beside each is the CPU time that the server's main thread used meanwhile: the wait on a core that has
nothing else to do. `loop` is the longest turn of the server's loop in CPU time. `CPU` is what all of it took.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.hostile.measuring import Measured, measure
from tests.hostile.strains import STRAINS

MIB = 1024 * 1024
WAITS = ("hold_cpu", "hold", "health_cpu", "health", "stream_cpu", "stream")
HEAD = (
    " | strain | MiB | loop ms | (wall) | /health CPU ms | (wall) | stream CPU ms | (wall) | CPU s | \n" + " |--" * 10
)


def row(name: str, times: list[Measured]) -> str:
    """One strain, as a line of a table."""
    seen = {key: max(time.seen[key] for time in times) for key in times[0].seen}
    waits = [f"{min(getattr(time, name) for time in times) * 1000:.0f}" for name in WAITS]
    memory = f"{max(time.memory for time in times) / MIB:.0f}"
    cpu = f"{min(time.cpu for time in times):.1f}"
    return " | ".join(["", name, memory, *waits, cpu, ", ".join(f"{key}: {value:.3g}" for key, value in seen.items())])


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strains", nargs="*", help="names; all by default")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the version to measure")
    parser.add_argument("--times", type=int, default=3, help="how often each is done (3)")
    parser.add_argument("--part", action="store_true", help="as small as in the tests")
    parser.add_argument("--save", type=Path, help="append each row to this file as JSON")
    options = parser.parse_args()
    if unknown := [name for name in options.strains if name not in STRAINS]:
        parser.error(f"no strain is called {unknown[0]!r}; there are {', '.join(STRAINS)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(HEAD)
    for name in options.strains or STRAINS:
        times = []
        for _ in range(options.times):
            try:
                with tempfile.TemporaryDirectory() as folder:
                    times.append(measure(STRAINS[name], Path(folder), is_full=not options.part, python=options.python))
            except Exception:  # noqa: BLE001  # an older version may not hold out; the others are measured all the same
                traceback.print_exc()
        if times:
            print(row(name, times), flush=True)
            if options.save:
                with options.save.open("a") as file:
                    json.dump({"name": name, "times": [vars(time) for time in times]}, file)
                    file.write("\n")


if __name__ == "__main__":
    main()
