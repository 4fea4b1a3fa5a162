"""The flags that select and change the configuration."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qgstream.process.config import Loaded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --dev, --config, --host, --port, --log-level and --set."""
    parser.add_argument(
        "--dev",
        action="store_true",
        help="settings to try it out: this machine only, pages of every origin, the publish key dev and the admin key "
        "dev-admin, a drain of 1 s; everything else overrides them",
    )
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file (or name it in QGSTREAM_CONFIG); `qgstream default-config`",
    )
    parser.add_argument("--host", help="address to listen on; server.host")
    parser.add_argument("-p", "--port", help="port to listen on, 0 is any free one; server.port")
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error (info); log.level")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        metavar="KEY=VALUE",
        dest="settings",
        help="any other key, for instance limits.max_connections=20000 (repeatable); no secrets",
    )
    parser.set_defaults(parser=parser)


def load(args: argparse.Namespace) -> Loaded:
    """Return the configuration of this command line and environment. Raises `ConfigError`."""
    from qgstream.process import config

    flags: dict[str, object] = dict(args.settings)
    own = (("server.host", args.host), ("server.port", args.port), ("log.level", args.log_level))
    flags |= {key: value for key, value in own if value is not None}
    return config.load(args.config, os.environ, flags, is_development=args.dev)


def path(args: argparse.Namespace) -> Path | None:
    """Return the configuration file of this command line and environment; None without one."""
    from qgstream.process.config import ENVIRONMENT_FILE

    named = os.environ.get(ENVIRONMENT_FILE)
    given: Path | None = args.config
    return given or (Path(named) if named else None)


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        # The text is not repeated: it may be a secret.
        raise argparse.ArgumentTypeError("got no '=', expected section.key=value")
    return key.strip(), value.strip()
