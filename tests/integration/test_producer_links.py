"""A real Producer whose receivers come, go, refuse and fall silent, over real links."""

import contextlib
from typing import Any

import numpy as np
import pytest

from asapo import Producer
from asapo.errors import (
    BeamtimeForbidden,
    DiskFull,
    LinkLost,
)
from asapo.testing.fake_receiver import Archive, FakeBroker, FakeReceiver
from asapo.wire.events import Bye, Hello
from asapo.wire.put import Put
from asapo_produce import discovery
from tests.integration.producing import WAIT_S, make


def test_what_was_not_acknowledged_is_resent_to_the_next_receiver() -> None:
    archive = Archive()
    with FakeReceiver(archive=archive) as first, make(first) as producer:
        first.hold_acks()
        handles = [producer.send(bytes(70_000), id=i) for i in range(1, 20)]
        first.wait_for(lambda: len(archive.ids()) >= 10)
        first.stop()
        with FakeReceiver(first.address, archive=archive) as again:
            assert [handle.result(WAIT_S) for handle in handles] == list(range(1, 20))
            assert again.defects == []
            assert producer.stats.resent >= 10
            assert again.archive.ids() == list(range(1, 20))
            producer.close()


def test_an_ack_directly_before_the_end_of_a_link_counts(receiver: FakeReceiver, producer: Producer) -> None:
    receiver.farewell = LinkLost("the receiver stops")
    assert producer.send(b"x", id=1).result(WAIT_S) == 1
    receiver.wait_for(lambda: receiver.count(Hello) == 2)  # what is sent before that may be resent, rightly
    producer.send(b"y", id=2).result(WAIT_S)
    assert receiver.count(Hello) == 2
    assert receiver.count(Put) == 2
    assert producer.stats.resent == 0


def test_a_silent_receiver_is_left_for_one_that_answers() -> None:
    archive = Archive()
    with (
        FakeReceiver(archive=archive, session_timeout_s=0.3, heartbeat_s=0.05) as mute,
        FakeReceiver(archive=archive, heartbeat_s=0.05) as lively,
        make(mute, lively) as producer,
    ):
        mute.wait_for(lambda: producer.stats.links == 2)
        mute.silent = True
        handles = [producer.send(bytes(300_000), id=i) for i in range(1, 31)]
        assert [handle.result(WAIT_S) for handle in handles] == list(range(1, 31))
        assert lively.count(Put) >= 15
        mute.silent = False


def test_units_are_spread_over_receivers() -> None:
    archive = Archive()
    with (
        FakeReceiver(archive=archive, receiver_id="a") as a,
        FakeReceiver(archive=archive, receiver_id="b") as b,
        make(a, b) as producer,
    ):
        a.wait_for(lambda: producer.stats.links == 2)
        a.hold_acks()
        b.hold_acks()
        for i in range(1, 21):
            producer.send(bytes(300_000), id=i)
        a.wait_for(lambda: len(archive.ids()) == 20)
        assert (a.count(Put), b.count(Put)) == (10, 10)
        a.release_acks()
        b.release_acks()


def test_receivers_come_and_go_at_the_brokers_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "REFRESH_S", 0.1)
    archive = Archive()
    with (
        FakeReceiver(archive=archive, receiver_id="a") as a,
        FakeReceiver(archive=archive, receiver_id="b") as b,
        FakeBroker() as broker,
    ):
        with Producer(broker.address, beamtime="bt", source="det") as producer:
            early = producer.send(b"x", id=1)
            broker.wait_for(lambda: broker.count(Hello) == 1)
            broker.receivers = [a]
            early.result(WAIT_S)
            assert a.count(Put) == 1
            broker.receivers = [b]
            b.wait_for(lambda: b.count(Hello) == 1)
            a.wait_for(lambda: a.count(Bye) == 1)
            assert [event.final for event in a.heard if type(event) is Bye] == [False]
            producer.send(b"y", id=2).result(WAIT_S)
            assert (a.count(Put), b.count(Put)) == (1, 1)
            broker.stop()
            producer.send(b"z", id=3).result(WAIT_S)
        assert [event.final for event in b.heard if type(event) is Bye] in ([True], [])


def test_ipc_works_like_tcp(tmp_path: Any) -> None:
    with FakeReceiver(f"ipc://{tmp_path}/r") as receiver, make(receiver) as producer:
        assert producer.send(np.zeros(1 << 20, "|u1")).result(WAIT_S) == 1


def test_a_refusal_for_good_fails_everything() -> None:
    with FakeReceiver(greeting=BeamtimeForbidden("not yours")) as receiver:
        producer = make(receiver)
        with contextlib.suppress(BeamtimeForbidden):
            assert isinstance(producer.send(b"x", id=1).exception(WAIT_S), BeamtimeForbidden)
        with pytest.raises(BeamtimeForbidden):
            producer.finish_stream("other")
        with pytest.raises(BeamtimeForbidden):
            producer.send(b"x", id=2)
        with pytest.raises(BeamtimeForbidden):
            producer.close()


def test_a_passing_error_is_retried(receiver: FakeReceiver) -> None:
    fails = iter([DiskFull("full", free_bytes=0)] * 2)
    receiver.refuse = lambda stream, i: next(fails, None)
    with make(receiver) as producer:
        assert producer.send(b"x", id=1).result(WAIT_S) == 1
        assert producer.stats.resent == 2


def test_an_error_that_does_not_pass_reaches_the_handle(receiver: FakeReceiver) -> None:
    receiver.refuse = lambda stream, i: DiskFull("full", free_bytes=7)
    with make(receiver, retry_s=0.15) as producer:
        with pytest.raises(DiskFull) as caught:
            producer.send(b"x", id=1).result(WAIT_S)
        assert caught.value.free_bytes == 7
        assert producer.stats.resent >= 1
