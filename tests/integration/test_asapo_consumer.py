"""The real consumer of ASAP::O reads what native producers send: every call that the HTTP front offers."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asapo import Producer
from asapo.testing.launch import LocalServices
from tests.asapo_clients import ClientError, RealClient, real_consumer

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]
real = pytest.mark.needs_asapo_clients


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    with LocalServices(tmp_path_factory.mktemp("services"), http=True) as found:
        yield found


@pytest.fixture(scope="module")
def producer(services: LocalServices) -> Iterator[Producer]:
    with Producer(services.native, beamtime="bt1", source="det") as found:
        yield found


@pytest.fixture(scope="module")
def consumer(services: LocalServices) -> Iterator[RealClient]:
    with real_consumer(services.http) as found:
        yield found


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """Return a stream of the test's own, with a name that has to be escaped."""
    return f"{request.node.originalname}/été §"


def fill(producer: Producer, stream: str, ids: range | list[int], *, last: str | None = None) -> None:
    """Send messages; `last` finishes the stream and names the next one."""
    for n in ids:
        producer.send(bytes([n % 256]) * n, stream=stream, id=n, meta={"n": n, "sample": {"name": f"é{n % 2}"}})
    producer.flush()
    if last is not None:
        producer.finish_stream(stream, next_stream=last)


def raised(call: Any, *args: Any, **kwargs: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call(*args, **kwargs)
    return caught.value


# -- discovery ----------------------------------------------------------------------------------------------------


@real
def test_the_client_finds_the_broker_and_is_served(consumer: RealClient) -> None:
    found = consumer.get_version_info()
    assert found["supported"] is True
    assert "0.1.0" in found["server"]
    assert "v0.7" in found["server"]


@real
def test_groups_have_ids_of_their_own(consumer: RealClient) -> None:
    assert len({consumer.generate_group_id() for _ in range(3)}) == 3


# -- messages -----------------------------------------------------------------------------------------------------


@real
def test_messages_come_in_order_with_what_the_producer_said(
    producer: Producer, consumer: RealClient, stream: str
) -> None:
    before_ns = time.time_ns()
    fill(producer, stream, range(1, 4))
    for n in range(1, 4):
        data, meta = consumer.get_next("g", meta_only=True, stream=stream)
        assert data is None
        assert (meta["_id"], meta["size"], meta["stream"]) == (n, n, stream)
        assert meta["meta"] == {"n": n, "sample": {"name": f"é{n % 2}"}}
        assert before_ns <= meta["timestamp"] <= time.time_ns()
    assert consumer.get_next("other", meta_only=True, stream=stream)[1]["_id"] == 1


@real
def test_metadata_that_are_too_long_to_come_together_come_one_by_one(
    producer: Producer, consumer: RealClient, stream: str
) -> None:
    for n in range(1, 36):
        producer.send(b"", stream=stream, id=n, meta={"n": n, "long": "x" * 600_000})
    producer.flush()
    found = [consumer.get_next("g", meta_only=True, stream=stream)[1]["meta"] for _ in range(35)]
    assert [meta["n"] for meta in found] == list(range(1, 36))
    assert {len(meta["long"]) for meta in found} == {600_000}


@real
def test_the_end_of_a_stream_is_no_error_of_the_next_message(
    producer: Producer, consumer: RealClient, stream: str
) -> None:
    error = raised(consumer.get_next, "g", meta_only=True, stream=stream)
    assert (error.kind, error.fields["id_max"]) == ("AsapoEndOfStreamError", 0)
    fill(producer, stream, [1])
    assert consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] == 1
    error = raised(consumer.get_next, "g", meta_only=True, stream=stream)
    assert (error.kind, error.fields["id_max"]) == ("AsapoEndOfStreamError", 1)
    fill(producer, stream, [2])
    assert consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] == 2


@real
@pytest.mark.parametrize(("next_stream", "told"), [("run2", "run2"), ("", "asapo_no_next")])
def test_a_finished_stream_names_the_next(
    producer: Producer, consumer: RealClient, stream: str, next_stream: str, told: str
) -> None:
    name = f"{stream}{told}"
    fill(producer, name, [1, 2], last=next_stream)
    for _ in range(2):
        consumer.get_next("g", meta_only=True, stream=name)
    for call in (
        lambda: consumer.get_next("g", meta_only=True, stream=name),
        lambda: (
            consumer.get_next("arrivals", meta_only=True, stream=name, ordered=False)
            and consumer.get_next("arrivals", meta_only=True, stream=name, ordered=False)
            and consumer.get_next("arrivals", meta_only=True, stream=name, ordered=False)
        ),
        lambda: consumer.get_last(meta_only=True, stream=name),
        lambda: consumer.get_last(meta_only=True, stream=name, group_id="g"),
        lambda: consumer.get_by_id(3, meta_only=True, stream=name),
    ):
        error = raised(call)
        assert error.kind == "AsapoStreamFinishedError"
        assert (error.fields["id_max"], error.fields["next_stream"]) == (2, told)


@real
def test_gaps_that_are_known_are_passed_over(producer: Producer, consumer: RealClient, stream: str) -> None:
    fill(producer, stream, [2, 5, 9])
    found = [consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] for _ in range(3)]
    assert found == [2, 5, 9]
    assert raised(consumer.get_next, "g", meta_only=True, stream=stream).kind == "AsapoEndOfStreamError"


@real
def test_a_hole_that_may_be_filled_is_told_and_the_group_goes_on_behind_it(
    services: LocalServices, consumer: RealClient, stream: str
) -> None:
    # A session that has said nothing of what it will send holds the watermark down.
    with (
        Producer(services.native, beamtime="bt1", source="det") as slow,
        Producer(services.native, beamtime="bt1", source="det") as quick,
    ):
        fill(slow, stream, [1])
        fill(quick, stream, [4])
        assert consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] == 1
        error = raised(consumer.get_next, "g", meta_only=True, stream=stream)
        assert (error.kind, error.fields["id"], error.fields["id_max"]) == ("AsapoNoDataError", 2, 4)
        fill(slow, stream, [3])
        assert consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] == 3


@real
def test_as_they_arrived(producer: Producer, consumer: RealClient, stream: str) -> None:
    for n in (3, 1, 2):
        fill(producer, stream, [n])

    def arrived(n: int) -> list[int]:
        found = [consumer.get_next("g", meta_only=True, stream=stream, ordered=False) for _ in range(n)]
        return [meta["_id"] for _, meta in found]

    assert arrived(3) == [3, 1, 2]
    assert raised(consumer.get_next, "g", meta_only=True, stream=stream, ordered=False).kind == "AsapoEndOfStreamError"
    # The other order has a place of its own.
    assert consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"] == 1
    consumer.set_lastread_marker("g", 1, stream=stream)
    assert arrived(2) == [1, 2]
    consumer.reset_lastread_marker("g", stream=stream)
    assert arrived(3) == [3, 1, 2]


@real
def test_by_id_and_the_last_one(producer: Producer, consumer: RealClient, stream: str) -> None:
    fill(producer, stream, [1, 2, 4])
    assert consumer.get_by_id(2, meta_only=True, stream=stream)[1]["meta"]["n"] == 2
    error = raised(consumer.get_by_id, 3, meta_only=True, stream=stream)
    assert (error.kind, error.fields["id"], error.fields["id_max"]) == ("AsapoNoDataError", 3, 4)
    assert raised(consumer.get_by_id, 9, meta_only=True, stream=stream).kind == "AsapoEndOfStreamError"
    assert consumer.get_last(meta_only=True, stream=stream)[1]["_id"] == 4
    assert consumer.get_last(meta_only=True, stream=stream, group_id="g")[1]["_id"] == 4
    assert raised(consumer.get_last, meta_only=True, stream=stream, group_id="g").kind == "AsapoEndOfStreamError"
    assert consumer.get_last(meta_only=True, stream=stream, group_id="other")[1]["_id"] == 4
    fill(producer, stream, [5])
    assert consumer.get_last(meta_only=True, stream=stream, group_id="g")[1]["_id"] == 5


# -- bytes --------------------------------------------------------------------------------------------------------


def array_of(payload: bytes) -> dict[str, Any]:
    """Return what the client's process tells of an array with these bytes."""
    return {"dtype": "int8", "size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}


@real
def test_bytes_come_as_they_were_sent(producer: Producer, consumer: RealClient, stream: str) -> None:
    sizes = [0, 1, 2000, 65_536, 1_000_000, 67_108_864]
    payloads = [random.Random(size).randbytes(size) for size in sizes]
    for n, payload in enumerate(payloads, 1):
        producer.send(payload, stream=stream, id=n, meta={"n": n})
    producer.flush()
    for n, payload in enumerate(payloads, 1):
        data, meta = consumer.get_next("g", meta_only=False, stream=stream)
        assert (meta["_id"], meta["size"], data) == (n, len(payload), array_of(payload))
    assert consumer.get_last(meta_only=False, stream=stream)[0] == array_of(payloads[-1])
    assert consumer.retrieve_data(consumer.get_by_id(2, meta_only=True, stream=stream)[1]) == array_of(payloads[1])


EIGHTHS = st.integers(-(10**6), 10**6).map(lambda n: n / 8)
"""The client reads 5.960464477539063e-08 as the double beside it; short numbers it reads exactly."""
texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | EIGHTHS | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
RUN = itertools.count()


@real
@given(
    st.dictionaries(
        st.integers(1, 2**62),
        st.tuples(st.binary(max_size=300), st.dictionaries(texts, values, max_size=4)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_comes_equal(
    producer: Producer, consumer: RealClient, messages: dict[int, tuple[bytes, dict[str, Any]]]
) -> None:
    stream = f"any {next(RUN)}"
    for n, (payload, meta) in sorted(messages.items()):
        producer.send(payload, stream=stream, id=n, meta=meta)
    producer.flush()
    for n, (payload, meta) in sorted(messages.items()):
        data, found = consumer.get_next("g", meta_only=False, stream=stream)
        assert (found["_id"], found["size"], found["meta"]) == (n, len(payload), meta)
        assert data == array_of(payload)


@real
def test_a_typed_array_comes_as_its_bytes(producer: Producer, consumer: RealClient, stream: str) -> None:
    frame = np.arange(512 * 100, dtype=">u2").reshape(512, 100)
    producer.send(frame, stream=stream, id=1)
    producer.flush()
    assert consumer.get_next("g", meta_only=False, stream=stream)[0] == array_of(frame.tobytes())


@real
def test_parts_of_a_dataset_have_their_own_bytes(producer: Producer, consumer: RealClient, stream: str) -> None:
    for substream in (1, 2):
        producer.send(bytes([substream]) * 100, stream=stream, id=1, dataset_size=2, substream=substream)
    producer.flush()
    parts_found = consumer.get_next_dataset("g", stream=stream)["content"]
    assert [consumer.retrieve_data(part) for part in parts_found] == [array_of(bytes([n]) * 100) for n in (1, 2)]


@real
def test_bytes_of_a_receiver_elsewhere_and_of_its_memory_are_fetched(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with (
        LocalServices(tmp_path_factory.mktemp("elsewhere"), http=True) as services,
        Producer(services.native, beamtime="bt1", source="det") as producer,
        Producer(services.native, beamtime="bt1", source="det", level="memory") as forgetful,
        real_consumer(services.http, timeout_ms=3000) as consumer,
    ):
        # A tier that does not say what it is cannot be told from another one, as on another host.
        next(services.data_dir.glob("beamline/.asapo-tier")).write_text("another\n")
        producer.send(b"stored", stream="s", id=1)
        producer.flush()
        forgetful.send(b"kept", stream="t", id=1)
        forgetful.flush()
        found = [consumer.get_next("g", meta_only=False, stream=stream)[0] for stream in ("s", "t")]
        assert found == [array_of(b"stored"), array_of(b"kept")]


@real
def test_bytes_that_are_gone_are_an_error_and_no_others(producer: Producer, consumer: RealClient, stream: str) -> None:
    fill(producer, stream, [1])
    meta = consumer.get_by_id(1, meta_only=True, stream=stream)[1]
    for name in (meta["name"][:-1] + "2", "../../etc/passwd", "processed/f1", "/etc/passwd"):
        error = raised(consumer.retrieve_data, meta | {"name": name})
        assert error.kind == "AsapoWrongInputError"


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
        with real_consumer(services.http, beamtime="meta", timeout_ms=300) as consumer:
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
def test_what_is_not_offered_says_so(producer: Producer, consumer: RealClient, stream: str) -> None:
    fill(producer, stream, [1])
    error = raised(consumer.delete_stream, stream=stream)
    assert (error.kind, "does not offer" in error.text) == ("AsapoWrongInputError", True)


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


# -- the front itself ---------------------------------------------------------------------------------------------


@real
def test_marks_survive_the_front_being_killed(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        LocalServices(tmp_path_factory.mktemp("killed"), http=True) as services,
        Producer(services.native, beamtime="bt1", source="det") as producer,
        real_consumer(services.http, timeout_ms=10_000) as consumer,
    ):
        fill(producer, "s", range(1, 7))
        for _ in range(2):
            consumer.get_next("g", meta_only=True, stream="s")
            consumer.get_next("g", meta_only=True, stream="s", ordered=False)
        consumer.acknowledge("g", 2, stream="s")
        consumer.neg_acknowledge("g", 1, delay_ms=0, stream="s")
        services.kill("http")
        services.restart("http")
        found = [consumer.get_next("g", meta_only=True, stream="s")[1]["_id"] for _ in range(2)]
        assert found == [1, 3]
        assert consumer.get_next("g", meta_only=True, stream="s", ordered=False)[1]["_id"] == 3
        assert consumer.get_unacknowledged_messages("g", stream="s") == [1, 3, 4, 5, 6]


@real
def test_a_core_that_is_killed_and_started_again_costs_no_message(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        LocalServices(tmp_path_factory.mktemp("core"), http=True) as services,
        Producer(services.native, beamtime="bt1", source="det") as producer,
        real_consumer(services.http, timeout_ms=20_000) as consumer,
    ):
        fill(producer, "s", range(1, 41))
        found: dict[bool, list[int]] = {True: [], False: []}
        for n in range(40):
            if n in (13, 27):
                services.kill("broker")
                services.restart("broker")
            for ordered, ids in found.items():
                ids.append(consumer.get_next("g", meta_only=True, stream="s", ordered=ordered)[1]["_id"])
        assert found[True] == list(range(1, 41))
        # The core writes down what is done every 50 ms: what it had not yet comes once more, and all of it comes.
        while 40 not in found[False]:
            found[False].append(consumer.get_next("g", meta_only=True, stream="s", ordered=False)[1]["_id"])
        assert set(found[False]) == set(range(1, 41))


@real
def test_several_readers_of_a_group_get_each_message_once(
    services: LocalServices, producer: Producer, stream: str
) -> None:
    fill(producer, stream, range(1, 101))
    found: list[int] = []

    def read() -> None:
        with real_consumer(services.http) as consumer, suppress(ClientError):
            while True:
                found.append(consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"])

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert sorted(found) == list(range(1, 101))


def ask(http: str, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send one request as it is and return status and body."""
    host, _, port = http.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), content


@pytest.mark.parametrize(
    ("method", "target", "status", "said"),
    [
        ("GET", "/asapo-discovery/v0.1/asapo-broker?token=T&protocol=v0.7", 200, b"127.0.0.1:"),
        ("GET", "//asapo-discovery/v0.1/asapo-file-transfer?token=T&protocol=v0.7", 200, b"127.0.0.1:"),
        ("GET", "/asapo-discovery/v0.1/asapo-receiver?protocol=v0.7", 200, b'{"MaxConnections":32,"Uris":[]}'),
        ("GET", "/asapo-discovery/v0.1/asapo-broker?token=T&protocol=v0.8", 415, b"v0.8"),
        ("GET", "/asapo-discovery/v0.1/asapo-broker?token=T&protocol=x", 400, b"version 'x'"),
        ("GET", "/v0.8/beamtime/bt1/det/s/size", 415, b"v0.8"),
        ("GET", "/v0.7/beamtime/bt1/det/s/unknown", 404, b"no such call"),
        ("GET", "/v0.7/beamtime/bt1/det/s/0/zero", 400, b"message id 'zero'"),
        ("POST", "/v0.7/beamtime/bt1/det/s/g/1", 400, b"JSON object"),
        ("GET", "/v0.7/beamtime/bt1/det/%FF/size", 400, b"UTF-8"),
    ],
)
def test_requests_that_clients_may_make_one_day(
    services: LocalServices, method: str, target: str, status: int, said: bytes
) -> None:
    found = ask(services.http, method, target)
    assert found[0] == status
    assert said in found[1]


def test_a_body_that_is_too_long_is_refused_and_not_kept(services: LocalServices) -> None:
    status, said = ask(services.http, "POST", "/v0.7/beamtime/bt1/det/s/0/querymessages", b"x" * 1_000_000)
    assert (status, b"expected at most" in said) == (400, True)


def test_the_rest_of_the_front_is_as_it_was(services: LocalServices) -> None:
    with urllib.request.urlopen(f"{services.http}/health") as answer:
        assert json.load(answer)["status"] == "up"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{services.http}/nothing")


DATA_SEGMENTS_IN = 152
"""Offset of `tcpi_data_segs_in` in the `tcp_info` of Linux, a 32-bit number."""


def test_an_answer_is_one_segment(services: LocalServices) -> None:
    """Two small ones would cost clients 40 ms each time: Nagle's algorithm and delayed acknowledgements."""
    host, _, port = services.http.removeprefix("http://").rpartition(":")

    def segments(connection: socket.socket) -> int:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return int(struct.unpack_from("<I", info, DATA_SEGMENTS_IN)[0])

    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for n in range(1, 21):
            connection.sendall(b"GET /v0.7/beamtime/bt1/det/none/g/next?token=T HTTP/1.1\r\nHost: h:1\r\n\r\n")
            answer = connection.recv(65536)
            assert answer.endswith(b"}")
            assert segments(connection) == n


# -- what the producer asks of the front --------------------------------------------------------------------------


@real
def test_the_real_producer_learns_of_streams_and_metadata(
    services: LocalServices, producer: Producer, stream: str
) -> None:
    fill(producer, stream, [1, 2, 3])
    producer.set_stream_meta(stream, {"scan": 1})
    host = services.http.removeprefix("http://")
    with RealClient("producer", host, "processed", "bt1", "auto", "det", "tok", 1, 2000) as client:
        found = client.get_version_info()
        assert (found["supported"], "0.1.0" in found["server"]) == (True, True)
        found = client.stream_info(stream)
        assert (found["lastId"], found["name"], found["finished"]) == (3, stream, False)
        assert client.last_stream()["lastId"] > 0
        assert client.get_stream_meta(stream) == {"scan": 1}
