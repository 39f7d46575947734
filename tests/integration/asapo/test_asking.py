"""The real consumer of ASAP::O: datasets, acknowledgements, listings, queries, and wrong input."""

from __future__ import annotations

import time

import pytest

from asapo import Consumer, Producer
from asapo.testing.launch import LocalServices
from tests.asapo_clients import RealClient, real_consumer
from tests.e2e.ledger import wait_until
from tests.integration.asapo.filling import fill, raised

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]
real = pytest.mark.needs_asapo_clients


# -- datasets -----------------------------------------------------------------------------------------------------


def parts(producer: Producer, stream: str, of: dict[int, list[int]], size: int = 3) -> None:
    for n, substreams in of.items():
        for substream in substreams:
            producer.send(
                b"x" * n, stream=stream, id=n, dataset_size=size, substream=substream, meta={"part": substream}
            )
    producer.flush()


@real
def test_datasets_come_with_their_parts(producer: Producer, consumer: RealClient, stream: str) -> None:
    parts(producer, stream, {1: [1, 2, 3], 2: [1, 3], 3: [1]})
    found = consumer.get_next_dataset("g", stream=stream)
    assert (found["id"], found["expected_size"]) == (1, 3)
    assert [part["meta"] for part in found["content"]] == [{"part": n} for n in (1, 2, 3)]
    assert [part["dataset_substream"] for part in found["content"]] == [1, 2, 3]
    error = raised(consumer.get_next_dataset, "g", stream=stream)
    assert error.kind == "AsapoPartialDataError"
    assert (error.fields["partial_data"]["id"], len(error.fields["partial_data"]["content"])) == (2, 2)
    assert consumer.get_next_dataset("g", min_size=1, stream=stream)["id"] == 3
    assert consumer.get_last_dataset(stream=stream)["id"] == 1
    assert consumer.get_last_dataset(min_size=2, stream=stream)["id"] == 2
    assert consumer.get_last_dataset(min_size=1, stream=stream, group_id="g")["id"] == 3
    assert len(consumer.get_dataset_by_id(2, min_size=2, stream=stream)["content"]) == 2
    assert raised(consumer.get_dataset_by_id, 3, stream=stream).kind == "AsapoPartialDataError"
    assert consumer.get_current_dataset_count(stream=stream, include_incomplete=True) == 3
    assert consumer.get_current_dataset_count(stream=stream) == 1
    assert consumer.get_current_size(stream=stream) == 3


@real
def test_a_group_may_wait_for_one_part_of_each_dataset(producer: Producer, consumer: RealClient, stream: str) -> None:
    parts(producer, stream, {1: [1, 2], 2: [1]})
    found = consumer.get_next_dataset("g", stream=stream, substream=2)
    assert [part["dataset_substream"] for part in found["content"]] == [2]
    error = raised(consumer.get_next_dataset, "g", stream=stream, substream=2)
    assert error.kind == "AsapoPartialDataError"


@real
def test_asking_for_the_wrong_kind_says_so(producer: Producer, consumer: RealClient, stream: str) -> None:
    parts(producer, f"{stream}d", {1: [1, 2, 3]})
    fill(producer, stream, [1])
    error = raised(consumer.get_by_id, 1, meta_only=True, stream=f"{stream}d")
    assert (error.kind, "calls for datasets" in error.text) == ("AsapoWrongInputError", True)
    error = raised(consumer.get_dataset_by_id, 1, stream=stream)
    assert (error.kind, "calls for messages" in error.text) == ("AsapoWrongInputError", True)
    assert raised(consumer.get_current_dataset_count, stream=stream).kind == "AsapoWrongInputError"


# -- acknowledgements ---------------------------------------------------------------------------------------------


@real
def test_what_is_acknowledged_is_known(producer: Producer, consumer: RealClient, stream: str) -> None:
    fill(producer, stream, range(1, 6))
    assert raised(consumer.get_last_acknowledged_message, "g", stream=stream).kind == "AsapoNoDataError"
    for n in (1, 2, 4):
        consumer.acknowledge("g", n, stream=stream)
    assert consumer.get_last_acknowledged_message("g", stream=stream) == 4
    assert consumer.get_unacknowledged_messages("g", stream=stream) == [3, 5]
    assert consumer.get_unacknowledged_messages("g", 0, 4, stream=stream) == [3]
    error = raised(consumer.acknowledge, "g", 4, stream=stream)
    assert (error.kind, "already acknowledged" in error.text) == ("AsapoWrongInputError", True)
    assert consumer.get_unacknowledged_messages("other", stream=stream) == [1, 2, 3, 4, 5]


@real
def test_what_is_handed_back_comes_again_once(producer: Producer, consumer: RealClient, stream: str) -> None:
    fill(producer, stream, [1, 2])
    consumer.get_next("g", meta_only=True, stream=stream)
    consumer.neg_acknowledge("g", 1, delay_ms=0, stream=stream)
    found = [consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] for _ in range(2)]
    assert found == [1, 2]
    assert raised(consumer.get_next, "g", meta_only=True, stream=stream).kind == "AsapoEndOfStreamError"


@real
def test_what_is_not_acknowledged_comes_again_so_often(
    services: LocalServices, producer: Producer, stream: str
) -> None:
    fill(producer, stream, [1, 2])
    with real_consumer(services.http) as consumer:
        consumer.set_resend_nacs(True, 0, 2)
        found = [consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] for _ in range(2)]
        assert found == [1, 1]
        consumer.acknowledge("g", 1, stream=stream)
        found = [consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] for _ in range(3)]
        assert found == [2, 2, 2]
        assert raised(consumer.get_next, "g", meta_only=True, stream=stream).kind == "AsapoEndOfStreamError"


@real
def test_the_marker_says_where_a_group_goes_on(producer: Producer, consumer: RealClient, stream: str) -> None:
    fill(producer, stream, range(1, 6))
    consumer.set_lastread_marker("g", 3, stream=stream)
    assert consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] == 4
    consumer.reset_lastread_marker("g", stream=stream)
    assert consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] == 1


# -- listings -----------------------------------------------------------------------------------------------------


@real
def test_streams_and_sources_are_listed(services: LocalServices, stream: str) -> None:
    with Producer(services.native, beamtime="listed", source="a/b") as producer:
        fill(producer, "one", [1, 2], last="two")
        fill(producer, stream, [7])
    with real_consumer(services.http, beamtime="listed", source="a/b") as consumer:
        assert consumer.get_source_list() == ["a/b"]
        found = consumer.get_stream_list()
        assert [entry["name"] for entry in found] == ["one", stream]
        assert [entry["lastId"] for entry in found] == [2, 7]
        assert [entry["finished"] for entry in found] == [True, False]
        assert found[0]["nextStream"] == "two"
        assert 0 < found[0]["timestampCreated"] <= found[0]["timestampLast"] < found[1]["timestampCreated"]
        assert [entry["name"] for entry in consumer.get_stream_list(filter="finished")] == ["one"]
        assert [entry["name"] for entry in consumer.get_stream_list(stream)] == [stream]
        assert consumer.get_stream_info(stream)["lastId"] == 7
        assert consumer.get_last_stream()["name"] == stream
        assert consumer.get_current_size(stream="one") == 2
        assert consumer.get_current_size(stream="nowhere") == 0


@real
def test_metadata_of_beamtime_and_stream(services: LocalServices) -> None:
    with Producer(services.native, beamtime="meta", source="det") as producer:
        fill(producer, "s", [1])
        with real_consumer(services.http, beamtime="meta", timeout_ms=2000) as consumer:
            assert raised(consumer.get_beamtime_meta).kind == "AsapoNoDataError"
            assert raised(consumer.get_stream_meta, "s").kind == "AsapoNoDataError"
            producer.set_beamtime_meta({"proposal": 42, "é": [1.5]})
            producer.set_stream_meta("s", {"scan": 1})
            assert consumer.get_beamtime_meta() == {"proposal": 42, "é": [1.5]}
            assert consumer.get_stream_meta("s") == {"scan": 1}


@real
def test_queries_find_what_they_ask_for(producer: Producer, consumer: RealClient, stream: str) -> None:
    fill(producer, stream, range(1, 11))

    def found(text: str) -> list[int]:
        return [meta["_id"] for meta in consumer.query_messages(text, stream=stream)]

    assert found("meta.n > 7") == [8, 9, 10]
    assert found("meta.sample.name = 'é1' and meta.n < 6 order by meta.n desc") == [5, 3, 1]
    assert found("meta.n in (1, 2) or _id between 9 and 10") == [1, 2, 9, 10]
    assert found("meta.sample.name regexp '^é0$' and meta.n not in (2, 4)") == [6, 8, 10]
    assert found("meta.nothing != 1 and _id < 3") == [1, 2]
    assert found(f"timestamp < {time.time() * 10**9 + 1e12} AND timestamp > 1.5e18 order by _id desc") == list(
        range(10, 0, -1)
    )
    assert found("meta.n = 0") == []
    assert consumer.query_messages("_id > 0", stream="nowhere") == []
    error = raised(consumer.query_messages, "bla", stream=stream)
    assert (error.kind, "the end of the query" in error.text) == ("AsapoWrongInputError", True)


# -- what is not offered, and wrong input -------------------------------------------------------------------------


@real
def test_a_deleted_stream_is_gone_and_its_groups_begin_anew(
    services: LocalServices, producer: Producer, consumer: RealClient, stream: str
) -> None:
    with Producer(services.native, beamtime="bt1", source="det") as other:
        fill(other, stream, range(1, 6), last="")
    for _ in range(3):
        consumer.get_next("g", meta_only=True, stream=stream)
    consumer.acknowledge("g", 2, stream=stream)
    assert consumer.delete_stream(stream=stream) is None
    assert stream not in [one["name"] for one in consumer.get_stream_list()]
    assert consumer.get_current_size(stream=stream) == 0
    error = raised(consumer.delete_stream, stream=stream)
    assert (error.kind, "nothing was deleted" in error.text) == ("AsapoWrongInputError", True)
    assert consumer.delete_stream(stream=stream, error_on_not_exist=False) is None
    with Producer(services.native, beamtime="bt1", source="det") as other:
        fill(other, stream, range(1, 3))
    assert [consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] for _ in range(2)] == [1, 2]
    assert consumer.get_unacknowledged_messages("g", stream=stream) == [1, 2]


@real
def test_a_stream_that_was_deleted_otherwise_is_read_from_its_beginning_too(
    services: LocalServices, consumer: RealClient, stream: str
) -> None:
    for n in (1, 2):
        with Producer(services.native, beamtime="bt1", source="det") as other:
            fill(other, stream, range(1, 2 + 2 * n), last="")
        wait_until(lambda: 2 in consumer.get_unacknowledged_messages("g", stream=stream), "the front has looked anew")
        found = [consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] for _ in range(3)]
        assert found == [1, 2, 3], f"recording {n}"
        assert consumer.get_unacknowledged_messages("g", stream=stream)[:3] == [1, 2, 3]
        consumer.acknowledge("g", 2, stream=stream)
        with Consumer(services.native, beamtime="bt1", source="det") as native:
            native.delete_stream(stream)


@real
def test_every_stream_is_kept(producer: Producer, consumer: RealClient, stream: str) -> None:
    fill(producer, stream, [1])
    assert consumer.set_stream_persistent(stream=stream) is None
    error = raised(consumer.set_stream_persistent, stream="nowhere")
    assert (error.kind, "nowhere" in error.text) == ("AsapoWrongInputError", True)


@real
def test_a_beamtime_that_clients_cannot_name_is_wrong_input(services: LocalServices) -> None:
    with real_consumer(services.http, beamtime="bt.1") as consumer:
        error = raised(consumer.get_by_id, 1, meta_only=True, stream="s")
        assert (error.kind, "beamtime 'bt.1'" in error.text) == ("AsapoWrongInputError", True)
