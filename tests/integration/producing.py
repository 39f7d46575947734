"""What tests of the producer against scripted receivers share."""

from typing import Any

from asapo import Producer
from asapo.testing.fake_receiver import FakeReceiver

WAIT_S = 30.0


def make(*receivers: FakeReceiver, **settings: Any) -> Producer:
    return Producer(beamtime="bt", source="det", receivers=[r.address for r in receivers], **settings)
