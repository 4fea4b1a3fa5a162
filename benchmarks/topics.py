"""What a client costs against the number of topics, from 1 to 100 000.

`python benchmarks/topics.py --save`, then `python benchmarks/plot.py`. The streams, and the events that they get, stay
the same; only the number of topics changes that streams have besides the shared one, or that the history holds.
"""

from __future__ import annotations

from collections.abc import Callable

from experiment import Experiment

from qgstream.bench.session import Figures, Session
from qgstream.bench.subjects import start_qgstream
from qgstream.bench.users import PREFIXES, come_back, fill

COLUMNS = {"cpu_us": "CPU us", "lost": "lost"}
TOPICS = (1, 10, 100, 1000, 10_000, 100_000)
PAYLOAD_BYTES, RATE = 100, 10.0
RETURNING, LATEST_CLIENTS = 500, 50
NO_HEARTBEAT = {"heartbeat.interval_seconds": 3600}
# Two events of the shared topic besides one of each other topic.
HISTORY = {"history.max_events": max(TOPICS) + 2, "history.max_bytes": 2**30}

DELIVERY, BACK, BACK_WITH_PREFIX, LATEST = "delivery to all", "back", "back, with a prefix", "latest, 64 patterns"


def delivery(experiment: Experiment, topics: int) -> Figures:
    """Events to the shared topic, while the streams have so many topics besides."""
    streams = experiment.streams
    with (
        start_qgstream(experiment.cores, streams=streams, settings=NO_HEARTBEAT) as subject,
        Session(subject, experiment.cores) as session,
    ):
        owners = min(topics, streams)
        own = "&topic=".join(f"own-{{n}}-{number}" for number in range(topics // owners))
        session.open(owners, topic=f"bench&topic={own}")
        if owners < streams:
            session.open(streams - owners)
        session.readers = streams
        figures = session.fan_out(RATE, experiment.seconds, PAYLOAD_BYTES)
        return {"topics": topics, "cpu_us": figures["cpu_us_per_delivery"], "lost": figures["lost"]}


def clients(experiment: Experiment, topics: int, kind: str) -> Figures:
    """Clients that get one event of the shared topic, while the history holds an event of so many others after it."""
    with (
        start_qgstream(experiment.cores, streams=experiment.streams, settings=NO_HEARTBEAT | HISTORY) as subject,
        Session(subject, experiment.cores) as session,
    ):
        seen_id: str | None = fill(session, ["bench"], PAYLOAD_BYTES)
        fill(session, ["bench"], PAYLOAD_BYTES)
        fill(session, [f"held-{number}" for number in range(topics)], PAYLOAD_BYTES)
        count, asked = min(RETURNING, experiment.streams), "bench"
        if kind == BACK_WITH_PREFIX:
            asked += "&topic=news/*"
        elif kind == LATEST:
            count, seen_id = min(LATEST_CLIENTS, count), None
            asked += "".join(f"&topic=news-{number}/*" for number in range(PREFIXES - 1)) + "&replay=latest"
        come_back(session, count, "bench", events=0)  # warm
        figures = come_back(session, count, asked, events=1, last_id=seen_id)
        return {"topics": topics, "cpu_us": figures["cpu_us_per_client"], "lost": figures["lost"]}


def main() -> None:
    """Every number of topics that the streams can have."""
    experiment = Experiment(__doc__ or "", streams=2000, seconds=3)
    most = experiment.streams * (PREFIXES - 1)  # `limits.max_topics_per_connection` has room for the shared one, too
    variants: dict[str, Callable[[], Figures]] = {}
    for topics in (topics for topics in TOPICS if topics <= most):
        variants[f"{topics} topics, {DELIVERY}"] = lambda topics=topics: delivery(experiment, topics)  # type: ignore[misc]
        for kind in (BACK, BACK_WITH_PREFIX, LATEST):
            variants[f"{topics} topics, {kind}"] = lambda topics=topics, kind=kind: clients(  # type: ignore[misc]
                experiment, topics, kind
            )
    experiment.compare(variants, COLUMNS)


if __name__ == "__main__":
    main()
