"""An argument parser that suggests the nearest correct flag, shows examples, and never repeats a secret."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from qgstream.cli import _streams
from qgstream.suggestions import did_you_mean, nearest

# Commands and flags of other servers, and what does the same here. The flags are those of `serve`.
_COMMANDS_ELSEWHERE: Mapping[str, str] = {
    "run": "serve", "start": "serve", "server": "serve", "up": "serve", "dev": "serve --dev", "version": "--version",
    "pub": "publish", "send": "publish", "sub": "tail", "subscribe": "tail", "listen": "tail", "check": "check-config",
    "config": "check-config --show", "completions": "completion", "man": "help --man",
}  # fmt: skip
_NO_WORKERS = (
    "this version serves with one process; to use more cores, start several processes with a broker that they share: "
    "docs/production.md, several processes"
)
_FLAGS_ELSEWHERE: Mapping[str, str] = {
    "--workers": _NO_WORKERS,
    "-w": _NO_WORKERS,
    "--bind": "use --host and --port",
    "-b": "use --host and --port",
    "--listen": "use --host and --port",
    "--reload": "SIGHUP loads the configuration again; the code is loaded at the start only",
    "--debug": "use --log-level debug",
    "--verbose": "use --log-level debug",
    "-v": "use --log-level debug; the version is -V",
    "--quiet": "use --log-level warning",
    "-q": "use --log-level warning",
    "--log-format": "use --set log.format=json",
    "--daemon": "the server runs in the foreground; use systemd: docs/production.md",
    "-d": "the server runs in the foreground; use systemd: docs/production.md",
}
# Where a flag stands without its command, these are tried first.
_LIKELY = ("serve", "tail")


class Parser(argparse.ArgumentParser):
    """The parser of the root command; argparse uses the same class for every subcommand.

    `examples` are command lines that `--help` and the manual page show.
    """

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.examples = tuple(examples)

    def format_help(self) -> str:
        """See `ArgumentParser`; the examples are its end, because a terminal shows the end of a long text."""
        text = super().format_help()
        if self.examples:
            text += "\nexamples:\n" + "".join(f"  {example}\n" for example in self.examples)
        return text

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse all arguments, or exit with status 2 and an error."""
        words = sys.argv[1:] if args is None else args
        if words and (wrong := self._before_command(words[0].partition("=")[0])):
            self.error(wrong)
        parsed, extras = self.parse_known_args(args, namespace)
        if extras:
            used: Parser = getattr(parsed, "parser", self)
            used.error(used._unknown(extras))
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # Where argparse finds that a command is unknown. Its own words list all commands, and suggest none.
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:  # noqa: SLF001
            raise argparse.ArgumentError(None, unknown_command(value, list(action.choices)))
        super()._check_value(action, value)

    def _unknown(self, extras: Sequence[str]) -> str:
        flags = [extra.partition("=")[0] for extra in extras if extra.startswith("-")]
        if not flags:
            return f"unexpected argument {extras[0]!r}"
        if any(re.match(r"--?auth\b", flag) for flag in flags):
            from qgstream.process.config import NO_SECRETS

            return NO_SECRETS
        return "; ".join(self._about(flag) for flag in flags)

    def _before_command(self, flag: str) -> str | None:
        """What is wrong with a flag that stands where the command should be. argparse would take the value of the flag
        for the command, and show it, which may be a secret."""
        parsers = commands(self)
        if not parsers or flag in self._option_string_actions or not re.fullmatch(r"--\w.*|-\w", flag):
            return None
        owners = [name for name, parser in parsers.items() if flag in parser._option_string_actions]  # noqa: SLF001
        if owners:
            name = next((name for name in _LIKELY if name in owners), owners[0])
            return f"expected a command before {flag}, for instance {self.prog} {name} {flag}"
        if flag in _FLAGS_ELSEWHERE:
            return f"unknown flag {flag}: {_FLAGS_ELSEWHERE[flag]}"
        return self._unknown([flag])

    def _about(self, flag: str) -> str:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        if "--set" in known:
            if re.fullmatch(r"--\w+\.\w+", flag):
                return f"unknown flag {flag}; did you mean --set {flag.removeprefix('--')}=VALUE?"
            if flag in _FLAGS_ELSEWHERE:
                return f"unknown flag {flag}: {_FLAGS_ELSEWHERE[flag]}"
        return f"unknown flag {flag}{did_you_mean(flag, known)}"

    def error(self, message: str) -> NoReturn:
        """Print the error in one line, and how to get help."""
        self.exit(2, f"{self.prog}: {message}\nTry: {self.prog} --help\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """See `ArgumentParser`."""
        if message:
            _streams.say(message, end="")
        sys.exit(status)

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse ignores a failure to write: --help and --version would end with status 0 and no output.
        if message:
            (file or sys.stderr).write(message)


def unknown_command(name: str, known: Sequence[str]) -> str:
    """The sentence for a command that does not exist."""
    near = name if name in _COMMANDS_ELSEWHERE else nearest(name, [*known, *_COMMANDS_ELSEWHERE])
    meant = "" if near is None else f"; did you mean {_COMMANDS_ELSEWHERE.get(near, near)}?"
    return f"unknown command {name[:100]!r}{meant}"


def commands(root: argparse.ArgumentParser) -> dict[str, Parser]:
    """The parser of each command, by name."""
    for action in root._actions:  # noqa: SLF001  # argparse has no other way to ask for them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return dict(action.choices)
    return {}
