"""A scripted receiver and a producer that knows it."""

from collections.abc import Iterator

import pytest

from asapo import Producer
from asapo.testing.fake_receiver import FakeReceiver


@pytest.fixture
def receiver() -> Iterator[FakeReceiver]:
    with FakeReceiver(heartbeat_s=0.05) as receiver:
        yield receiver
        assert receiver.defects == []


@pytest.fixture
def producer(receiver: FakeReceiver) -> Iterator[Producer]:
    with Producer(beamtime="bt", source="det", receivers=[receiver.address]) as producer:
        yield producer
