"""A client written from docs/reference/protocol.md alone, with no code of ours: it sends, reads, maps and fetches."""

import itertools
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import xxhash
import zmq

from asapo.testing.launch import LocalServices

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]

HELLO, WELCOME, BEAT, BYE, DONE, FAILED = 1, 2, 3, 4, 6, 7
PUT, OPEN_STREAM, FINISH_STREAM, ACK = 16, 17, 18, 20
GET_NEXT, QUERY, ACKNOWLEDGE, LIST_RECEIVERS, ROWS, FETCH, PIECE = 32, 35, 36, 40, 41, 64, 65
ANSWER_MS = 20_000


class Link:
    """One DEALER, two parts for each message."""

    def __init__(self, context: "zmq.Context[Any]", address: str, role: str, session: bytes) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self.socket.connect(address.replace("asapo://", "tcp://"))
        self.numbers = itertools.count(1)
        self.say(HELLO, {"role": role, "session": session, "beamtime": "bt1", "source": "det"})
        self.welcome = self.hear(WELCOME)[0]

    def say(self, kind: int, fields: dict[str, Any], payload: bytes = b"") -> None:
        self.socket.send_multipart([b"aP\x01\x00" + bytes([kind]) + msgpack.packb(fields), payload])

    def hear(self, *kinds: int) -> tuple[dict[str, Any], bytes]:
        """Return fields and payload of the next event of these kinds; heartbeats may come in between."""
        while True:
            assert self.socket.poll(ANSWER_MS), f"no answer of kind {kinds}"
            header, payload = self.socket.recv_multipart()
            assert header[:3] == b"aP\x01"
            if header[4] in kinds:
                return msgpack.unpackb(header[5:], strict_map_key=False), payload
            assert header[4] == BEAT, msgpack.unpackb(header[5:], strict_map_key=False)

    def ask(self, kind: int, **fields: Any) -> dict[str, Any]:
        self.say(kind, {"request": next(self.numbers), **fields})
        return self.hear(DONE, FAILED, ROWS)[0]

    def close(self) -> None:
        self.say(BYE, {"final": True})
        self.socket.close()


def unit(number: int, payloads: dict[int, bytes]) -> tuple[dict[str, Any], bytes]:
    """Return the Put of messages of equal size, and its payload part."""
    body = bytearray()
    for payload in payloads.values():
        body += bytes(-len(body) % 64) + payload
    header = {
        "u": number, "n": "scan 1", "i": list(payloads), "k": len(payloads), "z": [len(p) for p in payloads.values()],
        "c": b"".join(struct.pack("<Q", xxhash.xxh3_64_intdigest(p)) for p in payloads.values()),
        "m": [f'{{"number":{i}}}' for i in payloads], "t": struct.pack("<q", time.time_ns()) * len(payloads),
        "b": min(payloads), "f": ["<u2", [50], "raw"],
    }  # fmt: skip
    return header, bytes(body)


@pytest.fixture
def context() -> Iterator["zmq.Context[Any]"]:
    with zmq.Context() as own:
        yield own


def test_a_client_written_from_the_protocol_page_can_do_everything(tmp_path: Path, context: "zmq.Context[Any]") -> None:
    frames = {i: bytes([i]) * 100 for i in (1, 2, 5, 6)}
    with LocalServices(tmp_path) as services:
        broker = Link(context, services.native, "consumer", os.urandom(16))
        (receiver,) = broker.ask(LIST_RECEIVERS)["result"]["receivers"]
        tcp = next(address for address in receiver["addresses"] if address.startswith("tcp:"))
        producer = Link(context, tcp, "producer", os.urandom(16))
        assert producer.welcome["window_bytes"] >= 400
        opened = producer.ask(OPEN_STREAM, stream="scan 1", numbering=False)
        assert opened["result"]["id_max"] == 0
        producer.say(PUT, *unit(1, {i: frames[i] for i in (1, 2)}))
        producer.say(PUT, *unit(2, {i: frames[i] for i in (5, 6)}))
        acks = [producer.hear(ACK)[0]]
        while acks[-1]["upto"] < 2:
            acks.append(producer.hear(ACK)[0])
        assert not any(ack["errors"] for ack in acks)
        producer.say(BEAT, {"marks": {"scan 1": 7}})
        assert "error" not in producer.ask(FINISH_STREAM, stream="scan 1", last_id=6)

        place = {"source": "det", "stream": "scan 1"}
        taken: list[list[Any]] = []
        while len(taken) < len(frames):
            rows = broker.ask(GET_NEXT, **place, group="g", n=10, wait_s=5.0)
            taken += rows["rows"]
        assert [row[0] for row in taken] == list(frames)
        assert {row[9] for row in taken} == {f'{{"number":{i}}}' for i in frames}
        assert broker.ask(ACKNOWLEDGE, **place, group="g", ranges=[[1, 6]])["result"]["lost"] == []
        assert broker.ask(GET_NEXT, **place, group="g")["error"]["code"] == "stream_finished"
        assert [row[0] for row in broker.ask(QUERY, **place, text="number > 2")["rows"]] == [5, 6]

        path, _, _, tier_uuid, data_address = rows["segments"][taken[0][4]]
        assert Path(path).parents[3].joinpath(".asapo-tier").read_text().strip() == tier_uuid
        segment = Path(path).read_bytes()
        assert [segment[row[5] : row[5] + row[6]] for row in taken] == list(frames.values())
        reader = Link(context, data_address, "reader", os.urandom(16))
        reader.say(FETCH, {"request": 1, **place, "message_id": 5})
        piece, payload = reader.hear(PIECE)
        assert (piece["size"], payload) == (100, frames[5])
        for link in (reader, producer, broker):
            link.close()
