"""Consumers and stages on the real services: what a producer sends is what they read, whatever dies meanwhile."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asapo import AsyncConsumer, Consumer, Producer
from asapo.errors import GroupMismatch, StreamFinished, WrongInput
from asapo.testing.launch import LocalServices
from asapo_work import Message, Result, run_stage

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]


@pytest.fixture
def services(tmp_path: Path) -> Iterator[LocalServices]:
    with LocalServices(tmp_path) as running:
        yield running


@pytest.fixture
def consumer(services: LocalServices) -> Iterator[Consumer]:
    with Consumer(services.native, beamtime="bt", source="det") as made:
        yield made


def frame(number: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.full((16, 32), number, "<u2")


def fill(services: LocalServices, n: int, *, step: int = 1, stream: str = "default") -> list[int]:
    """Send n frames with ids that leave gaps, finish the stream, return the ids."""
    ids = [1 + i * step for i in range(n)]
    with Producer(services.native, beamtime="bt", source="det") as producer:
        for number in ids:
            producer.send(frame(number), id=number, meta={"n": number, "hit": number % 5 == 0}, stream=stream)
        producer.finish_stream(stream)
    return ids


@pytest.mark.parametrize("access", ["map", "fetch"])
def test_what_was_sent_is_what_is_read(services: LocalServices, access: Any) -> None:
    ids = fill(services, 300, step=3)
    with Consumer(services.native, beamtime="bt", source="det", access=access, verify=True) as consumer:
        seen = []
        for message in consumer.stream(group="g", timeout_s=20):
            assert np.array_equal(message.data, frame(message.id))
            assert message.meta["n"] == message.id
            seen.append(message.id)
    assert seen == ids


def test_a_finished_loop_leaves_nothing_for_the_group(services: LocalServices, consumer: Consumer) -> None:
    fill(services, 50)
    assert sum(len(messages) for messages in consumer.stream(group="g", batch=8, timeout_s=20)) == 50
    with pytest.raises(StreamFinished):
        consumer.get_next("g")


def test_workers_of_a_group_share_and_a_failing_one_passes_its_message_on(
    services: LocalServices, consumer: Consumer
) -> None:
    ids = fill(services, 100)
    seen = []

    def fail() -> None:
        with Consumer(services.native, beamtime="bt", source="det") as other:
            for message in other.stream(group="g", timeout_s=20):
                seen.append(message.id)
                if len(seen) == 10:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    again = {message.id: message.attempt for message in consumer.stream(group="g", timeout_s=20)}
    assert sorted({*seen, *again}) == ids
    assert set(again) & set(seen) == {seen[-1]}
    assert again[seen[-1]] == 2
    assert {attempt for number, attempt in again.items() if number != seen[-1]} == {1}


def test_a_filter_belongs_to_its_group(services: LocalServices, consumer: Consumer) -> None:
    ids = fill(services, 60)
    hits = [message.id for message in consumer.stream(group="g", where="meta.hit = true", timeout_s=20)]
    assert hits == [number for number in ids if number % 5 == 0]
    with pytest.raises(GroupMismatch):
        consumer.get_next("g", where="meta.hit = false")


def test_lookups_agree_with_what_was_sent(services: LocalServices, consumer: Consumer) -> None:
    ids = fill(services, 20, step=2)
    assert consumer.get_last().id == ids[-1]
    assert [message.id for message in consumer.get_by_id([5, 3])] == [5, 3]
    assert [message.id for message in consumer.query("meta.n > 30 ORDER BY meta.n DESC")] == [39, 37, 35, 33, 31]
    info = consumer.stream_info()
    assert (info["n_messages"], info["finished"], info["last_id"]) == (20, True, ids[-1])
    assert info["number"] == consumer.streams()[0]["number"] > 0
    assert consumer.sources() == ["det"]
    assert len(consumer.receivers()) == 1


def test_a_query_is_answered_page_by_page_counted_and_explained(services: LocalServices, consumer: Consumer) -> None:
    fill(services, 25)
    text = "n >= 5 ORDER BY hit DESC, n DESC"
    whole = [message.id for message in consumer.query(text)]
    first = consumer.query(text, limit=4, keys=["n"])
    assert [set(message.meta) for message in first] == [{"n"}] * 4
    assert first.more
    rest = [message.id for page in consumer.query_pages(text, page=6, after=first.cursor) for message in page]
    assert [message.id for message in first] + rest == whole
    assert consumer.count(text) == len(whole) > 10
    assert consumer.explain("_id = 3")["index"] == "id"
    with pytest.raises(WrongInput, match="another query"):
        consumer.query("n > 5", after=first.cursor)
    last = consumer.query(text, after=first.cursor)
    assert (last.more, len(consumer.query(text, after=last.cursor))) == (False, 0)

    async def ask() -> Any:
        async with AsyncConsumer(services.native, beamtime="bt", source="det") as other:
            pages = [[message.id for message in page] async for page in other.query_pages(text, page=6)]
            return pages, await other.count(text), await other.explain(text), await other.query(text, keys=["hit"])

    pages, count, explained, found = asyncio.run(ask())
    assert [message_id for page in pages for message_id in page] == whole
    assert {len(page) for page in pages[:-1]} == {6}
    assert (count, explained["scans"], explained["rows_total"]) == (len(whole), True, 25)
    assert [set(message.meta) for message in found] == [{"hit"}] * len(whole)


def test_metadata_of_stream_and_beamtime_are_read_back(services: LocalServices, consumer: Consumer) -> None:
    assert consumer.beamtime_meta() == {}
    fill(services, 3)
    assert (consumer.stream_meta(), consumer.beamtime_meta()) == ({}, {})
    with Producer(services.native, beamtime="bt", source="det") as producer:
        producer.set_stream_meta("default", {"sample": "ä"})
        producer.set_beamtime_meta({"user": {"name": "x"}})
    assert (consumer.stream_meta(), consumer.beamtime_meta()) == ({"sample": "ä"}, {"user": {"name": "x"}})

    async def ask() -> Any:
        async with AsyncConsumer(services.native, beamtime="bt", source="det") as other:
            return await other.stream_meta(), await other.beamtime_meta()

    assert asyncio.run(ask()) == ({"sample": "ä"}, {"user": {"name": "x"}})


def test_a_stage_publishes_results_that_lead_back_to_the_raw_frames(
    services: LocalServices, consumer: Consumer
) -> None:
    ids = fill(services, 40)

    def score(messages: list[Message]) -> list[Result | None]:
        return [Result(None, {"score": float(message.data.mean())}) for message in messages]

    with Producer(services.native, beamtime="bt", source="scores") as producer:
        counts = run_stage(consumer, producer, score, group="stage", batch=16, timeout_s=20)
        producer.finish_stream()
    assert (counts.taken, counts.published) == (len(ids), len(ids))
    best = consumer.query("meta.score > 0 ORDER BY meta.score DESC", source="scores", limit=3, resolve="origin")
    assert [(message.source, message.id) for message in best] == [("det", 40), ("det", 39), ("det", 38)]
    assert np.array_equal(best[0].data, frame(40))


def test_a_loop_goes_on_when_the_delivery_core_is_killed(services: LocalServices, consumer: Consumer) -> None:
    ids = fill(services, 400)
    seen: list[int] = []
    for messages in consumer.stream(group="g", batch=20, timeout_s=30):
        seen += [message.id for message in messages]
        if len(seen) in (100, 240):
            services.kill("broker")
            services.restart("broker")
    assert sorted(set(seen)) == ids  # at least once: acknowledgements of the last moments may be lost


async def _read_all(services: LocalServices) -> list[int]:
    async with AsyncConsumer(services.native, beamtime="bt", source="det") as consumer:
        return [message.data[0, 0] async for message in consumer.stream(group="g", timeout_s=20)]


def test_coroutines_read_the_same(services: LocalServices) -> None:
    fill(services, 30)
    assert asyncio.run(_read_all(services)) == list(range(1, 31))
