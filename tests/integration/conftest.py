"""Peers that follow a script, and a producer and a consumer that know them."""

from collections.abc import Iterator
from typing import Any

import pytest

from asapo import Consumer, Producer
from asapo.testing.fake_broker import FakeBroker
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


@pytest.fixture
def broker() -> Any:
    with FakeBroker() as running:
        yield running


@pytest.fixture
def consumer(broker: FakeBroker) -> Any:
    with Consumer(broker.url, beamtime="bt", source="det") as made:
        yield made
