"""`qgstream doctor`: checks whether `serve` finds what it needs here, and whether this machine can hold the configured
limits."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
import time
from typing import TYPE_CHECKING

from qgstream.cli import _settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction

# Enough to see that they are possible and what one costs; both ends are in this process.
_MOST_HELD = 4000


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="check whether this machine can hold the configured limits, and has the resources that the server needs",
        description="Runs the checks of check-config, checks descriptors, memory, the kernel's settings and the "
        "clock, and opens several thousand connections over loopback. Run it as the server's user, in the server's "
        "unit or container. Exit status 0: the server starts and the limits hold; 1: a check fails; 2: wrong "
        "usage.",
        examples=[
            "qgstream doctor --config production.toml",
            "qgstream doctor --set limits.max_connections=50000 --json",
        ],
    )
    _settings.add_arguments(parser)
    parser.add_argument(
        "--offline", action="store_true", help="do not contact the broker or the issuer, and do not try the ports"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, measure and print the findings."""
    from qgstream.net.sockets import RESERVED_DESCRIPTORS
    from qgstream.process import capacity, preflight
    from qgstream.process.machine import hold, raise_soft_descriptors, read_machine

    loaded = _settings.load(args)
    config = loaded.config
    needs = preflight.configuration(loaded, _settings.path(args), time.time(), lenient=False)
    if not args.offline:
        needs += preflight.network(config, needs)
    machine = read_machine()
    raise_soft_descriptors()
    room = max(1, (machine.hard_descriptors - RESERVED_DESCRIPTORS) // 2)
    held = hold(min(config.limits.max_connections, room, _MOST_HELD))
    findings = [*needs, *capacity.examine(config, machine, held, time.time())]
    least = capacity.capacity(findings)
    fails = any(finding.verdict == "fails" for finding in findings)
    wanted = config.limits.max_connections
    if args.json:
        summary = {
            "holds": not fails,
            "max_connections": {
                "configured": wanted,
                "fits": least and least.fits,
                "bounded_by": least and least.check,
            },
            "checks": [dataclasses.asdict(finding) for finding in findings],
        }
        print(json.dumps(summary, indent=2))
        return int(fails)
    for finding in findings:
        print(f"{finding.verdict:8} {finding.check:20} {finding.found}")
        if finding.change:
            print(textwrap.fill(f"-> {finding.change}", 118, initial_indent=" " * 30, subsequent_indent=" " * 33))
    if least is not None:
        print(f"\nlimits.max_connections is {wanted}; this machine can hold {least.fits} (limited by: {least.check})")
    return int(fails)
