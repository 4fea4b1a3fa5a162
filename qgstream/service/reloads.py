"""The times of the last configuration load and of the last refused reload, for metrics and for `/admin/config`."""

from __future__ import annotations

import time
from collections.abc import Sequence

from qgstream.logs import utc_iso
from qgstream.metrics import Metrics


class Reloads:
    """The results of the configuration loads of one process. The configuration at start counts as the first load."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.count = 0  # of the loads after the first one that have come into effect
        self._loaded_at = time.time()
        self._failed_at: float | None = None
        self._problems: tuple[str, ...] = ()

    def loaded(self) -> None:
        """A configuration has come into effect."""
        self._loaded_at = time.time()
        self.count += 1
        self._metrics.config_loaded(self._loaded_at)

    def rejected(self, problems: Sequence[str]) -> None:
        """A reload was refused, and the previous configuration stays in effect."""
        self._failed_at = time.time()
        self._problems = tuple(problems)
        self._metrics.config_rejected()

    def document(self) -> dict[str, object]:
        """Return the results as JSON. A failure stays listed after a later success: compare the times to see which was
        last."""
        failure = None
        if self._failed_at is not None:
            failure = {"at": utc_iso(self._failed_at), "problems": list(self._problems)}
        return {"loaded_at": utc_iso(self._loaded_at), "last_failure": failure}
