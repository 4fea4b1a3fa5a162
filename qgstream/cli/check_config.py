"""`qgstream check-config`: checks whether `serve` would find what it needs, without starting the server."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgstream.cli import _diff, _settings, _streams

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from qgstream.process.capacity import Finding
    from qgstream.process.config import Loaded


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "check-config",
        help="check the configuration and its resources without starting the server",
        description="Checks the configuration, and tries what `serve` needs: the broker, the certificate, the "
        "keys, the ports, the descriptors. Prints ok and warnings, or every problem on standard error. Exit status 0: "
        "no problem; 1: a problem; 2: wrong usage. `qgstream doctor` also checks what this machine can hold.",
        epilog=f"The admin key for --diff comes from the environment: {_diff.KEY_VARIABLE}; else it is the first of "
        "auth.admin_keys.",
        examples=[
            "qgstream check-config --config production.toml",
            "qgstream check-config --config production.toml --offline --strict",
            "qgstream check-config --config production.toml --diff",
        ],
    )
    _settings.add_arguments(parser)
    parser.add_argument("--show", action="store_true", help="also print every key, its value and where it came from")
    parser.add_argument(
        "--offline",
        action="store_true",
        help="check only the configuration and its files, for a reload or for another machine: the network and this "
        "machine are not checked, and a problem that does not prevent a start is a warning",
    )
    parser.add_argument("--strict", action="store_true", help="exit with status 1 for warnings too")
    parser.add_argument(
        "--diff",
        nargs="?",
        const=_diff.RUNNING,
        metavar="OLD",
        help="also print the changes compared with the file OLD, or without OLD compared with the running server",
    )
    parser.add_argument(
        "--url", help="URL of the running server's admin port, for --diff (by default that of this configuration)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the configuration, check it, and print the findings."""
    from qgstream.errors import ConfigError

    if args.url is not None and args.diff != _diff.RUNNING:
        args.parser.error("--url is for --diff without a file")
    try:
        loaded = _settings.load(args)
    except ConfigError as error:
        if not args.json:
            raise
        print(json.dumps({"ok": False, "problems": error.problems, "warnings": [], "checks": []}, indent=2))
        return 1
    checked = Checked(loaded, _findings(args, loaded), is_strict=args.strict)
    # Before anything is printed, so that a server that does not respond leaves no partial output.
    diff = _diff.compare(args, loaded, args.diff) if args.diff is not None and not checked.problems else None
    (_print_json if args.json else _print)(checked, diff, show=args.show)
    return int(not checked.is_ok)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A configuration and its findings."""

    loaded: Loaded
    findings: list[Finding]
    is_strict: bool

    @property
    def problems(self) -> list[str]:
        """Return the failed checks as sentences."""
        return [_sentence(finding) for finding in self.findings if finding.verdict == "fails"]

    @property
    def warnings(self) -> list[str]:
        """Return the warnings as sentences."""
        return [*self.loaded.warnings, *(_sentence(one) for one in self.findings if one.verdict == "warning")]

    @property
    def is_ok(self) -> bool:
        """Return whether the exit status is 0."""
        return not self.problems and not (self.is_strict and self.warnings)


def _print(checked: Checked, diff: _diff.Diff | None, *, show: bool) -> None:
    for problem in checked.problems:
        _streams.say(problem)
    for warning in checked.warnings:
        _streams.say(f"warning: {warning}")
    if checked.problems:
        return
    print("ok" if checked.is_ok else "not ok: there are warnings, and --strict was given")
    if show:
        for key, value, source in checked.loaded.effective():
            print(f"{key} = {json.dumps(value, ensure_ascii=False)}  # {source}")
    if diff is not None:
        for line in diff.lines or ["no changes"]:
            print(line)


def _print_json(checked: Checked, diff: _diff.Diff | None, *, show: bool) -> None:
    document: dict[str, Any] = {
        "ok": checked.is_ok,
        "problems": checked.problems,
        "warnings": checked.warnings,
        "checks": [dataclasses.asdict(finding) for finding in checked.findings],
    }
    if diff is not None:
        document["diff"] = diff.document
    if show:
        document["config"] = {key: {"value": value, "source": at} for key, value, at in checked.loaded.effective()}
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _findings(args: argparse.Namespace, loaded: Loaded) -> list[Finding]:
    from qgstream.process import capacity, preflight
    from qgstream.process.machine import read_machine

    path: Path | None = _settings.path(args)
    findings = preflight.configuration(loaded, path, time.time(), lenient=args.offline)
    if not args.offline:
        findings += preflight.network(loaded.config, findings)
        findings.append(capacity.descriptors(loaded.config, read_machine()))
    return findings


def _sentence(finding: Finding) -> str:
    return f"{finding.check}: {finding.found}" + (f"; {finding.change}" if finding.change else "")
