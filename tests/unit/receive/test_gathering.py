"""Small units of one message each: taken in as one, answered one by one."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import xxhash

from asapo.errors import DuplicateId, PayloadChanged
from asapo.metrics import Counters
from asapo.transport import Message
from asapo.wire.codec import decode, encode
from asapo.wire.events import Ack, Goodbye, Hello
from asapo.wire.put import Put, pack_column
from asapo_receive.network import SMALL_BYTES, Network
from asapo_receive.settings import ReceiverSettings
from asapo_receive.units import Unit, verify


class Wire:
    """A server socket as far as the network thread sees it."""

    def __init__(self) -> None:
        self.incoming: deque[Message] = deque()
        self.outgoing: list[tuple[bytes, Any]] = []

    def receive(self) -> Message | None:
        return self.incoming.popleft() if self.incoming else None

    def send(self, peer: bytes, header: bytes, payload: bytes = b"", *, copy: bool = True) -> bool:
        self.outgoing.append((peer, decode(header)))
        return True

    def received_bytes(self, peer: bytes) -> int:
        return 0

    def refused(self) -> int:
        return 0

    def pollables(self) -> tuple[Any, ...]:
        return ()


class Bench:
    """A network thread without its thread: one turn at a time."""

    def __init__(self, tmp_path: Any) -> None:
        self.wire = Wire()
        self.taken: list[Unit] = []
        settings = ReceiverSettings(receiver_id="r1", data_dir=tmp_path, state_dir=tmp_path)
        submit: Any = self.taken.extend
        servers: Any = [self.wire]
        self.network = Network(settings, 1, servers, submit, lambda *_: None, Counters())
        self.say(b"p", Hello("producer", b"s" * 16, "bt", "det"))
        self.turn()
        self.wire.outgoing.clear()

    def say(self, peer: bytes, event: Any, payload: bytes = b"") -> None:
        self.wire.incoming.append(Message(encode(event), payload, peer))

    def turn(self) -> list[Any]:
        while self.network._take_burst():
            pass
        self.network._send_outcomes()
        said = [event for _, event in self.wire.outgoing]
        self.wire.outgoing.clear()
        return said

    def finish(self) -> list[Any]:
        done, self.taken[:] = list(self.taken), []
        self.network.finished(done)
        return self.turn()


@pytest.fixture
def bench(tmp_path: Any) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.network.stop()
    made.network.run()


def put(unit: int, payload: bytes, message_id: int = 0) -> Put:
    return Put(
        unit=unit, stream="s", ids=[message_id or unit], sizes=[len(payload)], metas=["{}"], closed_below=1,
        checksums=pack_column([xxhash.xxh3_64_intdigest(payload)]), acquired_ns=bytes(8),
    )  # fmt: skip


def frame(unit: int) -> bytes:
    return unit.to_bytes(2, "big") * 50


def test_a_burst_becomes_one_unit_and_one_ack(bench: Bench) -> None:
    for unit in range(1, 11):
        bench.say(b"p", put(unit, frame(unit)), frame(unit))
    bench.turn()
    (whole,) = bench.taken
    assert (whole.wire_units, whole.put.ids, whole.nbytes) == (10, range(1, 11), 9 * 128 + 100)
    verify(whole)
    assert whole.errors == []
    assert [whole.payload[128 * at : 128 * at + 100] for at in range(10)] == [frame(unit) for unit in range(1, 11)]
    assert decode(whole.header, whole.nbytes) == whole.put
    (peer,) = bench.network._peers.values()
    assert (peer.next_unit, peer.in_flight_messages, peer.in_flight_bytes) == (11, 10, whole.nbytes)
    assert bench.finish() == [Ack(10, [], 0)]
    assert (peer.in_flight_messages, peer.in_flight_bytes) == (0, 0)


def test_refusals_name_the_units_that_the_producer_knows(bench: Bench) -> None:
    for unit in range(1, 6):
        bench.say(b"p", put(unit, frame(unit)), frame(unit) if unit != 4 else frame(99))
    bench.turn()
    (whole,) = bench.taken
    verify(whole)
    whole.errors.append((1, DuplicateId("there already", message_id=2, substream=0)))
    (ack,) = bench.finish()
    assert ack.upto == 5
    assert [(unit, index, error["code"]) for unit, index, error in ack.errors] == [
        (2, 0, DuplicateId.code),
        (4, 0, PayloadChanged.code),
    ]


def test_large_units_other_events_and_other_producers_stand_between(bench: Bench) -> None:
    bench.say(b"q", Hello("producer", b"q" * 16, "bt", "det"))
    large = bytes(SMALL_BYTES + 1)
    for unit, payload in enumerate([b"a", b"b", large, b"c", b"d"], 1):
        bench.say(b"p", put(unit, payload), payload)
    for unit in (1, 2):
        bench.say(b"q", put(unit, b"e", 10 + unit), b"e")
    bench.say(b"p", put(6, b"f"), b"f")
    bench.turn()
    assert [(unit.peer[1], unit.put.unit, unit.wire_units) for unit in bench.taken] == [
        (b"p", 1, 2), (b"p", 3, 1), (b"p", 4, 2), (b"q", 1, 2), (b"p", 6, 1),
    ]  # fmt: skip


def test_what_comes_before_a_wrong_header_is_taken_and_the_link_ends(bench: Bench) -> None:
    for unit in (1, 2, 4, 5):
        bench.say(b"p", put(unit, b"a"), b"a")
    goodbye, *_ = bench.turn()
    assert type(goodbye) is Goodbye
    assert "unit 4: expected 3" in goodbye.error["message"]
    assert [unit.put.unit for unit in bench.taken] == [1, 2]


def test_a_burst_beyond_the_credit_ends_the_link(bench: Bench) -> None:
    (peer,) = bench.network._peers.values()
    peer.in_flight_messages = peer.window_messages + 4096
    for unit in (1, 2):
        bench.say(b"p", put(unit, b"a"), b"a")
    goodbye, *_ = bench.turn()
    assert "goes beyond the credit" in goodbye.error["message"]
    assert bench.taken == []
