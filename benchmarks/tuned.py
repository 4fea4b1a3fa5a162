"""qgstream with other constants.

    python benchmarks/tuned.py '{"qgstream.delivery.slices:SLICE_SECONDS": 0.001}' serve

Some names are no constants but switches of an experiment: see `SWITCHES`.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import sys
import time
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from tornado.web import RequestHandler

from qgstream.cli import main


def change(module: ModuleType, name: str, value: Any) -> None:
    """Set a constant, also where it is the default of a parameter, which was bound when the function was defined."""
    old = getattr(module, name)
    value = type(old)(value)
    setattr(module, name, value)
    classes = [member for _, member in inspect.getmembers(module, inspect.isclass)]
    for holder in [module, *classes]:
        for _, function in inspect.getmembers(holder, inspect.isfunction):
            _change_defaults(function, old, value)


def _change_defaults(function: FunctionType, old: object, value: object) -> None:
    defaults = function.__defaults__
    if defaults is not None and any(default is old for default in defaults):
        function.__defaults__ = tuple(value if default is old else default for default in defaults)


def _no_freeze() -> None:
    gc.freeze = lambda: None


def _keep_cycles() -> None:
    detach = RequestHandler.detach

    def detach_and_stay(self: RequestHandler) -> Any:
        self.cycle = self  # type: ignore[attr-defined]  # what `handler.ui` is, unless it is broken
        return detach(self)

    RequestHandler.detach = detach_and_stay  # type: ignore[method-assign]


def _time_collections() -> None:
    began = seconds = 0.0

    def watch(phase: str, _info: dict[str, int]) -> None:
        nonlocal began, seconds
        if phase == "start":
            began = time.process_time()
        else:
            seconds += time.process_time() - began
            print(f"gc {seconds:.6f}", file=sys.stderr, flush=True)

    gc.callbacks.append(watch)


SWITCHES: dict[str, Callable[[], None]] = {
    "gc.no_freeze": _no_freeze,
    "gc.keep_cycles": _keep_cycles,
    "gc.time": _time_collections,
}


def apply(changes: dict[str, Any]) -> None:
    """Make all changes."""
    for target, value in changes.items():
        if target in SWITCHES:
            SWITCHES[target]()
        else:
            module, _, name = target.partition(":")
            change(importlib.import_module(module), name, value)


if __name__ == "__main__":
    apply(json.loads(sys.argv.pop(1)))
    sys.exit(main())
