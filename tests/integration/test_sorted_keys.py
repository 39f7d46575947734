"""A key is declared for an installation that has data already: the configuration is changed, services are restarted."""

from pathlib import Path

import pytest

from asapo import Consumer, Producer
from asapo.index.sorting import MIN_ROWS
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import wait_until

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]


def served_by(consumer: Consumer, text: str, stream: str) -> str:
    return str(consumer.explain(text, stream=stream)["index"])


def send(services: LocalServices, stream: str, *, n: int = MIN_ROWS) -> None:
    """Send messages and finish the stream."""
    ids = range(1, n + 1)
    with Producer(services.native, beamtime="bt1", source="det") as producer:
        metas = [{"n": one % 100, "sample": {"name": f"s{one % 10}"}} for one in ids]
        for first in range(0, n, 500):
            part = slice(first, first + 500)
            producer.send_batch([b"x"] * len(metas[part]), ids=list(ids[part]), metas=metas[part], stream=stream)
        producer.finish_stream(stream)


@pytest.mark.parametrize("receivers", [2])
def test_streams_of_before_are_sorted_by_a_key_that_is_declared_later(tmp_path: Path, receivers: int) -> None:
    both, first_ids = "sample.name = 's3' AND n >= 50", [53, 63, 73, 83, 93, 153]
    with LocalServices(tmp_path, receivers=receivers) as services:
        send(services, "early")
        with Consumer(services.native, beamtime="bt1", source="det") as consumer:
            assert served_by(consumer, both, "early") == ""
            assert [one.id for one in consumer.query(both, stream="early", limit=6)] == first_ids
    keys = ("n", "sample.name")
    with (
        LocalServices(tmp_path, receivers=receivers, sorted_keys=keys) as services,
        Consumer(services.native, beamtime="bt1", source="det") as consumer,
    ):
        wait_until(lambda: served_by(consumer, both, "early") == "sample.name", "the stream to be sorted")
        assert consumer.stream_info(stream="early")["sorted_keys"] == list(keys)
        assert [one.id for one in consumer.query(both, stream="early", limit=6)] == first_ids
        send(services, "late")
        wait_until(lambda: served_by(consumer, "ORDER BY n DESC LIMIT 2", "late") == "n", "that it is sorted")
        assert [one.id for one in consumer.query("ORDER BY n DESC LIMIT 2", stream="late")] == [99, 199]
    with (
        LocalServices(tmp_path, receivers=receivers) as services,
        Consumer(services.native, beamtime="bt1", source="det") as consumer,
    ):
        assert consumer.stream_info(stream="late")["sorted_keys"] == list(keys), "no list changes nothing"
