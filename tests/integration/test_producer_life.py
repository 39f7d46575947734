"""A real Producer in threads, forks and programs that end; what it refuses at once."""

import os
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from asapo import Producer
from asapo.errors import (
    AsapoError,
    DeadlineExceeded,
    LinkLost,
    LocalProtocolError,
    WrongInput,
)
from asapo.models import Origin
from asapo.testing.fake_receiver import FakeReceiver
from asapo.wire.events import Bye
from tests.integration.producing import WAIT_S, make


def test_many_threads_may_send(producer: Producer, receiver: FakeReceiver) -> None:
    def work() -> None:
        for _ in range(200):
            producer.send(b"x" * 50)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    producer.flush(WAIT_S)
    assert receiver.archive.ids() == list(range(1, 801))


def test_closing_without_receivers_fails_what_waits() -> None:
    producer = Producer(beamtime="b", source="s", receivers=["tcp://127.0.0.1:9"])
    handle = producer.send(b"x", id=1)
    with pytest.raises(DeadlineExceeded):
        producer.close(0.05)
    assert isinstance(handle.exception(0), LinkLost)
    producer.close()
    for use in (lambda: producer.send(b"x", id=2), producer.flush, producer.finish_stream):
        with pytest.raises(LocalProtocolError, match="closed"):
            use()


def test_an_error_in_the_block_is_what_is_raised() -> None:
    def block() -> None:
        with Producer(beamtime="b", source="s", receivers=["tcp://127.0.0.1:9"]) as producer:
            producer.send(b"x", id=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 0}, {"id": -1}, {"id": 2**63}, {"id": 1.5}, {"id": True}, {"stream": ""}, {"stream": "x" * 256},
        {"meta": {"a": float("nan")}}, {"meta": []}, {"substream": 1}, {"dataset_size": 2},
        {"substream": 3, "dataset_size": 2}, {"substream": 1, "dataset_size": 2.5},
        {"substream": True, "dataset_size": 2}, {"substream": 1, "dataset_size": 2**63},
        {"origin": Origin("", "scan", 1)}, {"origin": Origin("raw", "scan", 0)},
        {"data": 5}, {"acquired_ns": 2**63}, {"origin": "raw"}, {"codec": "zip"},
    ],
)  # fmt: skip
def test_wrong_input_is_refused_at_once(producer: Producer, wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"data": b"x", "id": 1, **wrong}
    with pytest.raises(WrongInput):
        producer.send(**arguments)
    assert producer.stats.sent == 0


@pytest.mark.parametrize("wrong", [{"level": "synced"}, {"transport": "rdma"}, {"beamtime": ""}, {"receivers": []}])
def test_wrong_settings_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(WrongInput):
        Producer(**{"beamtime": "b", "source": "s", **wrong})


def test_buffers_of_the_sdk_are_recycled(producer: Producer, receiver: FakeReceiver) -> None:
    for i in range(1, 30):
        frame = producer.get_buffer(shape=(256, 512), dtype="uint16")
        frame[:] = i
        handle = producer.send(frame, id=i)
        del frame
        handle.result(WAIT_S)
        handle.wait_released(WAIT_S)
    assert producer.stats.recycled > 0
    assert all(
        receiver.archive.messages["default", 0, i].data == np.full(1 << 17, i, "<u2").tobytes() for i in range(1, 30)
    )


@pytest.mark.needs_linux
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_needs_its_own_producer(producer: Producer) -> None:
    producer.send(b"x", id=1).result(WAIT_S)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            producer.send(b"y", id=2)
        except AsapoError as exc:
            os.write(write, exc.message.encode())
        finally:
            producer.close()
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as pipe:
        assert b"make a new Producer in the forked process" in pipe.read()
    producer.send(b"y", id=2).result(WAIT_S)


SCRIPT = """
import sys
from asapo import Producer
producer = Producer(beamtime="b", source="s", receivers=[sys.argv[1]])
for i in range(1, 101):
    producer.send(b"x", id=i)
if sys.argv[2] == "forgotten":
    del producer
"""


@pytest.mark.parametrize("how", ["unclosed", "forgotten"])
def test_a_program_that_just_ends_still_gets_its_acks(receiver: FakeReceiver, how: str) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, receiver.address, how], check=True, timeout=WAIT_S)
    assert receiver.archive.ids() == list(range(1, 101))


def test_a_program_without_receivers_ends(capfd: pytest.CaptureFixture[str]) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, "tcp://127.0.0.1:9", "unclosed"], check=True, timeout=WAIT_S)
    assert "Traceback" not in capfd.readouterr().err


def test_a_dropped_producer_ends_its_thread(receiver: FakeReceiver) -> None:
    producer = make(receiver)
    handle = producer.send(b"x", id=1)
    del producer
    handle.result(WAIT_S)
    receiver.wait_for(lambda: receiver.count(Bye) == 1)


def test_handles_say_what_they_are(producer: Producer, receiver: FakeReceiver) -> None:
    receiver.hold_acks()
    handle, batch = producer.send(b"x", id=1), producer.send_batch([b"y"], ids=[2])
    with pytest.raises(DeadlineExceeded):
        handle.result(0)
    assert "waiting" in repr(handle)
    assert "waiting" in repr(batch)
    receiver.release_acks()
    producer.flush(WAIT_S)
    assert "acknowledged" in repr(handle)
    assert "done" in repr(batch)
    assert "2 of 2" in repr(producer)
