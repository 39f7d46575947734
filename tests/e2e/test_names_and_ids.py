"""Odd names work everywhere or are refused by name; so are ids at and beyond the ends of their range."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asapo import Consumer, Producer
from asapo.errors import DuplicateId, WrongInput
from asapo.models import MAX_ID
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import PATIENCE_S, consumer_of, producer_of

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]

ODD_NAMES = [
    "a/b",
    "/absolute",
    "..",
    ".",
    "../../../outside",
    ".hidden",
    " ",
    " two words ",
    "new\nline\ttab",
    "Größe 1 µm",
    "日本語のストリーム",
    "🔬" * 63,
    "x" * 255,
    "é" * 127,
    "%2F%2e",
    "a\\b:c*d?e\"f<g>h|i",
    "'; DROP TABLE message; --",
    "CON",
    "con",
    "~",
    "-rf",
    "$HOME `id` \x1b[31m",
    "index.sqlite",
    "e\u0301",
    "\u00e9",
]  # fmt: skip
BAD_NAMES = ["", "a\0b", "x" * 256, "é" * 128, "\ud800", None, 7, b"bytes"]


def _outside(root: Path) -> str:
    """Return a digest of all paths beside and above the data folder that our services could have written."""
    names = sorted(str(path) for path in root.parent.rglob("*") if not path.is_relative_to(root))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_of_streams_sources_and_groups_work(services: LocalServices, consumer: Consumer, name: str) -> None:
    before = _outside(services.data_dir)
    data = np.frombuffer(name.encode(), np.uint8)
    with producer_of(services, source=name) as producer:
        producer.send(data, id=3, stream=name, meta={"name": name}).result(PATIENCE_S)
        producer.set_stream_meta(name, {"of": name})
        producer.finish_stream(name, next_stream=name + "'" if len(name.encode()) < 255 else "")
    message = consumer.get_next(name, stream=name, source=name)
    assert (message.id, message.meta, message.stream, message.source) == (3, {"name": name}, name, name)
    np.testing.assert_array_equal(message.data, data)
    consumer.acknowledge(message, group=name)
    assert consumer.get_last(stream=name, source=name).id == 3
    assert bytes(consumer.get_by_id(3, stream=name, source=name).raw) == name.encode()
    assert consumer.query("meta.name IS NOT NULL", stream=name, source=name)[0].meta == {"name": name}
    info = consumer.stream_info(stream=name, source=name)
    assert (info["n_messages"], info["meta"], info["finished"]) == (1, {"of": name}, True)
    assert [entry["stream"] for entry in consumer.streams(source=name)] == [name]
    assert name in consumer.sources()
    with consumer_of(services, source=name, access="fetch") as far:
        assert bytes(far.get_by_id(3, stream=name).raw) == name.encode()
    assert _outside(services.data_dir) == before


def test_odd_beamtimes_lie_apart_and_inside_the_data_folder(services: LocalServices) -> None:
    before = _outside(services.data_dir)
    names = [*ODD_NAMES, "bt"]
    for number, name in enumerate(names, 1):
        with producer_of(services, beamtime=name, source="s") as producer:
            producer.send(str(number).encode(), id=number).result(PATIENCE_S)
    for number, name in enumerate(names, 1):
        with consumer_of(services, beamtime=name, source="s") as consumer:
            assert bytes(consumer.get_last().raw) == str(number).encode()
            assert consumer.stream_info()["n_messages"] == 1
    assert _outside(services.data_dir) == before
    for folder in ("beamline", "state"):
        assert all(not path.is_symlink() for path in (services.data_dir / folder).rglob("*"))


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_cannot_be_are_refused_before_anything_is_sent(
    services: LocalServices, producer: Producer, consumer: Consumer, name: Any
) -> None:
    sent = producer.stats.sent
    for call in (
        lambda: producer.send(b"x", id=1, stream=name),
        lambda: producer.send_batch([b"x"], ids=[1], stream=name),
        lambda: producer.finish_stream(name),
        lambda: producer_of(services, source=name),
        lambda: producer_of(services, beamtime=name),
        lambda: consumer_of(services, beamtime=name),
        lambda: consumer.get_next("g", stream=name, timeout_s=0),
        lambda: consumer.get_next(name, stream="s", timeout_s=0),
        lambda: consumer.get_last(stream=name),
    ):
        with pytest.raises(WrongInput):
            call()
    assert producer.stats.sent == sent


@pytest.mark.parametrize("message_id", [0, -1, 2**63, 2**64, -(2**63), 1.5, "1", None.__class__, True, np.float64(3)])
def test_ids_that_cannot_be_are_refused_before_anything_is_sent(
    producer: Producer, consumer: Consumer, message_id: Any
) -> None:
    for call in (
        lambda: producer.send(b"x", id=message_id, stream="bad ids"),
        lambda: producer.send_batch([b"x"], ids=[message_id], stream="bad ids"),
        lambda: producer.send_batch([b"x", b"y"], ids=[message_id, 5], stream="bad ids"),
        lambda: consumer.get_by_id(message_id, stream="bad ids"),
        lambda: consumer.acknowledge(message_id, group="g", stream="bad ids"),
    ):
        with pytest.raises((WrongInput, TypeError)):
            call()
    assert producer.stats.sent == 0


def test_batches_need_ascending_ids(producer: Producer) -> None:
    for ids in ([2, 1], [1, 1], [1], [1, 2, 3]):
        with pytest.raises(WrongInput):
            producer.send_batch([b"x", b"y"], ids=ids, stream="bad order")
    assert producer.stats.sent == 0


def test_numpy_integers_are_ids(producer: Producer, consumer: Consumer) -> None:
    ids: Any = np.array([3, 9])
    one: Any = np.uint64(11)
    producer.send_batch([b"x", b"y"], ids=ids, stream="numpy ids").result(PATIENCE_S)
    producer.send(b"z", id=one, stream="numpy ids").result(PATIENCE_S)
    assert [message.id for message in consumer.get_by_id([3, 9, 11], stream="numpy ids")] == [3, 9, 11]


def test_the_ends_of_the_range_of_ids_work(producer: Producer, consumer: Consumer) -> None:
    ids = [1, 2**31, 2**32, 2**53 + 1, MAX_ID - 1, MAX_ID]
    for message_id in ids:
        producer.send(str(message_id).encode(), id=message_id, stream="far ids", meta={"id": message_id})
    producer.finish_stream("far ids")
    messages = list(consumer.stream(group="g", stream="far ids", timeout_s=PATIENCE_S))
    assert [message.id for message in messages] == ids
    assert [int(bytes(message.raw)) for message in messages] == ids
    assert [message.meta["id"] for message in messages] == ids
    assert consumer.get_last(stream="far ids").id == MAX_ID
    assert [message.id for message in consumer.query(f"_id > {2**53}", stream="far ids")] == ids[3:]
    assert consumer.query(f"meta.id = {2**53 + 1}", stream="far ids")[0].id == 2**53 + 1


# -- the same id again -----------------------------------------------------------------------------------------------


def test_the_same_message_again_is_a_success_and_stored_once(services: LocalServices, consumer: Consumer) -> None:
    stream = "again"
    for address in _one_address_each(services):
        with producer_of(services, receivers=[address]) as one:
            assert one.send(b"same", id=5, stream=stream, meta={"a": 1}).result(PATIENCE_S) == 5
            assert one.send(b"same", id=5, stream=stream, meta={"a": 1}).result(PATIENCE_S) == 5
    assert consumer.stream_info(stream=stream)["n_messages"] == 1
    assert bytes(consumer.get_by_id(5, stream=stream).raw) == b"same"


@pytest.mark.parametrize(
    ("data", "meta"),
    [(b"else", {"a": 1}), (b"first", {"a": 2}), (np.frombuffer(b"first", np.uint8), {"a": 1}), (b"", {"a": 1})],
)
def test_another_message_with_the_same_id_is_refused_and_the_first_stays(
    services: LocalServices, consumer: Consumer, data: Any, meta: Any
) -> None:
    stream = f"conflict {bytes(data)!r} {meta} {type(data).__name__}"
    first, second = _one_address_each(services)
    with producer_of(services, receivers=[first]) as one, producer_of(services, receivers=[second]) as other:
        one.send(b"first", id=5, stream=stream, meta={"a": 1}).result(PATIENCE_S)
        for producer in (one, other):
            handle = producer.send(data, id=5, stream=stream, meta=meta)
            neighbour = producer.send(b"neighbour", id=6, stream=stream)
            error = handle.exception(PATIENCE_S)
            assert isinstance(error, DuplicateId)
            assert error.message_id == 5
            assert neighbour.result(PATIENCE_S) == 6
            assert producer.stats.failed == 1
    found = consumer.get_by_id([5, 6], stream=stream)
    assert (bytes(found[0].raw), found[0].meta, bytes(found[1].raw)) == (b"first", {"a": 1}, b"neighbour")
    assert consumer.stream_info(stream=stream)["n_messages"] == 2


def _one_address_each(services: LocalServices) -> list[str]:
    return [str(services.ready(name)["addresses"][0]) for name in ("r1", "r2")]
