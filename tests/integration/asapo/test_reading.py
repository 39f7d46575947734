"""The real consumer of ASAP::O reads what native producers send: discovery, messages, bytes."""

from __future__ import annotations

import hashlib
import itertools
import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asapo import Producer
from asapo.testing.launch import LocalServices
from tests.asapo_clients import RealClient, real_consumer
from tests.integration.asapo.filling import fill, raised

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]
real = pytest.mark.needs_asapo_clients


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
