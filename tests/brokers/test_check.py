"""`Broker.check`: whether a broker could be opened, found out beside processes that use its log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qgstream.brokers.sqlite.file import InUse
from qgstream.errors import Unavailable
from qgstream.process.config import Config
from qgstream.process.preflight import network
from tests.brokers.conftest import Tails
from tests.brokers.engines import Engine
from tests.brokers.machines import REDIS, REDIS_HELLO, Machine
from tests.brokers.test_contract import event
from tests.conftest import ExpectLog


@pytest.mark.gen_test
async def test_a_check_disturbs_nobody(engine: Engine, tails: Tails) -> None:
    await engine.broker().check()  # nobody has made the log
    tail = await tails.open()
    await tail.broker.append([event("1")])
    for _ in range(2):
        try:
            await engine.broker().check()
        except InUse:
            assert engine.url.startswith("sqlite")
    await tail.broker.append([event("2")])
    assert [publication.data for publication in tail.delivered] == [b"1", b"2"]
    assert (tail.lost_at, tail.broker.is_up) == ([], True)


@pytest.mark.gen_test
async def test_an_engine_that_hangs_is_not_waited_for(engine: Engine, remote: Machine) -> None:
    remote.hang()
    with pytest.raises(Unavailable):
        await engine.broker(timeout_seconds=1).check()
    remote.go_on()


def test_what_an_engine_may_lose_is_a_warning_of_the_check(
    tmp_path: Path, expect_log: ExpectLog, require_program: Callable[[str], Path]
) -> None:
    require_program("redis-server")
    expect_log("broker.unsafe")
    machine = Machine([*REDIS[:-3], "no"], tmp_path, hello=REDIS_HELLO)
    machine.start()
    try:
        config = Config.model_validate({
            "broker": {"url": f"redis://127.0.0.1:{machine.port}"}, "server": {"port": 0},
        })  # fmt: skip
        found = [finding for finding in network(config) if finding.check == "broker.url"]
    finally:
        machine.kill()
    assert [finding.verdict for finding in found] == ["ok", "warning"]
    assert "append-only file is off" in found[1].found
