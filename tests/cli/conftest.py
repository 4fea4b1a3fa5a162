"""A server for the commands that are clients of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path_factory.mktemp("server"), auth__admin_keys='["admin-key"]', limits__overload_retry_seconds=0.1
    ) as running:
        yield running
