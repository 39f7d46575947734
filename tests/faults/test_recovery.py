"""Producers and consumers find their way back by themselves, whatever was away and in whatever order it returns."""

import asyncio
import itertools
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from asapo import AsyncConsumer, Consumer
from asapo.errors import AsapoError, StorageError, StreamBusy
from asapo.models import Origin
from asapo.testing.launch import LocalServices
from asapo_work import Message, Result, Stage
from tests.e2e.ledger import (
    PATIENCE_S,
    Ledger,
    OrderedReader,
    consumer_of,
    producer_of,
    sparse_ids,
    under_load,
    wait_until,
)

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]


@pytest.fixture
def services(tmp_path: Path) -> Iterator[LocalServices]:
    with LocalServices(tmp_path) as found:
        yield found


def test_producers_and_consumers_may_start_before_the_services(services: LocalServices) -> None:
    ledger = Ledger("early")
    services.kill("r1")
    services.kill("broker")
    with producer_of(services) as producer:
        reader = OrderedReader(services, ledger)
        reader.start()
        handles = [ledger.send(producer, message_id) for message_id in itertools.islice(sparse_ids(), 20)]
        services.restart("broker")
        services.restart("r1")
        assert all(handle.result(PATIENCE_S) for handle in handles)
        producer.finish_stream(ledger.stream)
        assert reader.finish() == sorted(ledger.acked)


def test_ingest_goes_on_without_a_core(services: LocalServices) -> None:
    ledger = Ledger("alone")
    with producer_of(services) as producer:
        with under_load(producer, ledger, sparse_ids()) as load:
            load.wait_for_more(20)
            services.kill("broker")
            load.wait_for_more(100)
            services.kill("r1")
            services.restart("r1")
            load.wait_for_more(100)
        producer.finish_stream(ledger.stream)
        services.restart("broker")
        assert ledger.check_all(services) == sorted(ledger.acked)


def test_a_stream_numbered_by_the_sdk_stays_dense_while_receivers_die(services: LocalServices) -> None:
    stream = "numbered"
    handles: list[Any] = []
    stopping = threading.Event()
    with producer_of(services) as producer:

        def send() -> None:
            while not stopping.wait(0.003):
                handles.append(producer.send(b"%d" % len(handles), stream=stream, meta={"n": len(handles)}))

        producer.send(b"0", stream=stream, meta={"n": 0}).result(PATIENCE_S)
        handles.append(None)  # message n has id n + 1
        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        for _ in range(2):
            before = producer.stats.acked
            wait_until(lambda n=before: producer.stats.acked > n + 30, "messages are acknowledged")  # type: ignore[misc]
            services.kill("r1")
            services.restart("r1")
        stopping.set()
        sender.join(PATIENCE_S)
        producer.finish_stream(stream)
        assert [handle.result(0) for handle in handles[1:]] == list(range(2, len(handles) + 1))
    with consumer_of(services) as consumer:
        found = list(consumer.stream(group="g", stream=stream, timeout_s=PATIENCE_S))
    assert [message.id for message in found] == list(range(1, len(handles) + 1))
    assert all(bytes(message.raw) == b"%d" % (message.id - 1) for message in found)


def test_a_second_session_numbers_a_stream_only_when_the_first_is_gone(tmp_path: Path) -> None:
    with LocalServices(tmp_path, session_timeout_s=2.0) as services:
        first = producer_of(services)
        first.send(b"x", stream="owned").result(PATIENCE_S)
        with producer_of(services) as second:
            with pytest.raises(StreamBusy):
                second.send(b"x", stream="owned")
            first.close()
            assert second.send(b"y", stream="owned").result(PATIENCE_S) == 2


def test_the_end_of_a_stream_survives_the_death_of_its_receiver(services: LocalServices) -> None:
    with producer_of(services) as producer, consumer_of(services) as consumer:
        producer.set_beamtime_meta({"proposal": 7})
        for number in range(1, 4):
            stream = f"scan {number}"
            producer.send(b"x", id=5, stream=stream).result(PATIENCE_S)
            services.kill("r1")
            ended = threading.Thread(
                target=producer.finish_stream, args=(stream,), kwargs={"next_stream": f"scan {number + 1}"}, daemon=True
            )
            ended.start()
            services.restart("r1")
            ended.join(PATIENCE_S)
            assert not ended.is_alive()
            info = consumer.stream_info(stream=stream)
            assert (info["finished"], info["last_id"], info["next_stream"]) == (True, 5, f"scan {number + 1}")


def test_what_was_in_a_dead_receivers_memory_is_an_honest_error_never_other_bytes(services: LocalServices) -> None:
    with producer_of(services, level="memory") as producer, consumer_of(services, verify=False) as consumer:
        producer.send(b"before", id=1).result(PATIENCE_S)
        assert bytes(consumer.get_by_id(1).raw) == b"before"
        services.kill("r1")
        services.restart("r1")
        producer.send(b"behind", id=2).result(PATIENCE_S)  # it lies where the first one lay
        assert bytes(consumer.get_by_id(2).raw) == b"behind"
        with pytest.raises(StorageError):
            consumer.get_by_id(1).raw  # noqa: B018


def test_fetching_goes_on_when_the_data_server_is_back(services: LocalServices) -> None:
    ledger = Ledger("fetched")
    with producer_of(services) as producer, consumer_of(services, access="fetch") as consumer:
        for message_id in itertools.islice(sparse_ids(), 100):
            ledger.send(producer, message_id)
        producer.flush(PATIENCE_S)
        ledger.check_by_id(consumer)
        services.kill("r1")
        messages = consumer.get_by_id(sorted(ledger.acked), stream=ledger.stream)
        services.restart("r1")
        for message in messages:
            ledger.check_content(message.id, message.raw, "a data server")


def test_health_and_metrics_come_back_with_the_core(tmp_path: Path) -> None:
    with LocalServices(tmp_path, http=True) as services:

        def health() -> tuple[int, Any]:
            try:
                with urllib.request.urlopen(f"{services.http}/health", timeout=PATIENCE_S) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as exc:
                with exc:
                    return exc.code, json.load(exc)

        wait_until(lambda: health()[0] == 200, "all is up")
        services.kill("r1")
        wait_until(
            lambda: health() == (503, {"status": "down", "broker": "up", "receivers": 0}), "no receiver is there"
        )
        services.kill("broker")
        wait_until(lambda: health()[1]["broker"] == "down", "no core is there")
        services.restart("broker")
        services.restart("r1")
        wait_until(lambda: health() == (200, {"status": "up", "broker": "up", "receivers": 1}), "all is up again")


def test_calls_without_services_end_in_time_with_a_reason(services: LocalServices) -> None:
    services.kill("broker")
    with Consumer(services.native, beamtime="bt", source="det", timeout_s=0.5) as consumer:
        for call in (
            lambda: consumer.get_next("g"),
            lambda: consumer.get_last(),
            lambda: consumer.get_by_id(1),
            lambda: consumer.streams(),
            lambda: list(consumer.stream(group="g", timeout_s=0.5)),
        ):
            with pytest.raises(AsapoError) as reason:
                call()
            assert reason.value.retriable
            assert services.native.rpartition(":")[2] in str(reason.value)


# -- pipelines -------------------------------------------------------------------------------------------------------


def test_a_stage_publishes_each_result_once_whatever_is_killed(tmp_path: Path) -> None:
    ledger = Ledger("raw", sizes=(10, 5_000))

    def score(messages: list[Message]) -> list[Result]:
        return [Result(meta={"sum": sum(bytes(message.raw))}) for message in messages]

    with (
        LocalServices(tmp_path, receivers=2) as services,
        producer_of(services) as producer,
        consumer_of(services) as consumer,
        producer_of(services, source="scores") as publisher,
    ):
        stage = Stage(consumer, publisher, score, group="g", stream=ledger.stream, batch=20, timeout_s=2 * PATIENCE_S)
        working = threading.Thread(target=stage.run, daemon=True)
        working.start()
        with under_load(producer, ledger, sparse_ids()) as load:
            for name in ("r1", "broker", "r2"):
                load.wait_for_more(60)
                services.kill(name)
                services.restart(name)
            load.wait_for_more(20)
        producer.finish_stream(ledger.stream)
        working.join(2 * PATIENCE_S)
        assert not working.is_alive()
        publisher.finish_stream(ledger.stream)
        results = list(consumer.stream(group="check", stream=ledger.stream, source="scores", timeout_s=PATIENCE_S))
        assert [result.id for result in results] == sorted(ledger.acked)
        for result in results:
            assert result.meta == {"sum": sum(ledger.payload(result.id))}
            assert result.origin == Origin("det", ledger.stream, result.id)


def test_coroutines_read_on_over_the_death_of_the_core(services: LocalServices) -> None:
    ledger = Ledger("async", sizes=(0, 10, 5_000))

    async def read() -> list[int]:
        ids = []
        async with AsyncConsumer(services.native, beamtime="bt", source="det", access="fetch") as consumer:
            async for message in consumer.stream(group="g", stream=ledger.stream, timeout_s=2 * PATIENCE_S):
                ledger.check_content(message.id, (await consumer.load(message)).raw, "a coroutine")
                ids.append(message.id)
        return ids

    with ThreadPoolExecutor(1) as pool, producer_of(services) as producer:
        reading = pool.submit(asyncio.run, read())
        with under_load(producer, ledger, sparse_ids()) as load:
            load.wait_for_more(50)
            services.kill("broker")
            services.restart("broker")
            load.wait_for_more(50)
        producer.finish_stream(ledger.stream)
        ids = reading.result(2 * PATIENCE_S)
    assert list(dict.fromkeys(ids)) == sorted(ledger.acked)
