"""`qgstream completion`: the script with which a shell completes commands and flags."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

SHELLS = ("bash", "zsh")


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script that completes commands and flags in a shell",
        description="Prints a script for a shell. The script knows the commands and flags of this version, and starts "
        "no program when you press Tab.",
        examples=[
            "source <(qgstream completion bash)",
            "qgstream completion bash > ~/.local/share/bash-completion/completions/qgstream",
            "qgstream completion zsh > ~/.zfunc/_qgstream",
        ],
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    import shtab

    from qgstream.cli import make_parser

    print(shtab.complete(make_parser(), shell=args.shell))
    return 0
