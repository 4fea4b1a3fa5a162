"""An argument parser that names the nearest right flag, and never repeats a secret."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from qgstream.cli import _streams
from qgstream.suggestions import did_you_mean


class Parser(argparse.ArgumentParser):
    """Of the root command and, since argparse makes them of the same class, of every subcommand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse everything, or exit with status 2 and what is wrong."""
        parsed, extras = self.parse_known_args(args, namespace)
        if extras:
            used: Parser = getattr(parsed, "parser", self)
            used.error(used._unknown(extras))
        return parsed

    def _unknown(self, extras: Sequence[str]) -> str:
        flags = [extra.partition("=")[0] for extra in extras if extra.startswith("-")]
        if not flags:
            return f"unexpected argument {extras[0]!r}"
        if any(re.match(r"--?auth\b", flag) for flag in flags):
            from qgstream.process.config import NO_SECRETS

            return NO_SECRETS
        return "; ".join(self._about(flag) for flag in flags)

    def _about(self, flag: str) -> str:
        known = re.findall(r"--[a-z][a-z-]*", self.format_help())
        if re.fullmatch(r"--\w+\.\w+", flag) and "--set" in known:
            return f"unknown flag {flag}; did you mean --set {flag.removeprefix('--')}=VALUE?"
        return f"unknown flag {flag}{did_you_mean(flag, known)}"

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and where the help is."""
        self.exit(2, f"{self.prog}: {message}\nTry: {self.prog} --help\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """See `ArgumentParser`."""
        if message:
            _streams.say(message, end="")
        sys.exit(status)

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse passes over a failure: --help and --version would end with status 0 and nothing said.
        if message:
            (file or sys.stderr).write(message)
