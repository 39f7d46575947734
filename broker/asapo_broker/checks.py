"""What a request may contain, beyond what its event can know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from asapo.errors import WrongInput
from asapo.models import check_id, check_name
from asapo.transport import resolve
from asapo.wire.events import GetNext, Nack, Register
from asapo.wire.group_events import DeleteGroup, Explain, Seek, SettleDeadLetters
from asapo.wire.limits import MAX_RANGES
from asapo_broker.streams import GroupRequest

MAX_ADDRESSES: Final = 16
MAX_METRICS: Final = 10_000
METRIC_NAME: Final = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")


def check_request(event: GroupRequest) -> None:
    """Check the names.

    Raises
    ------
    WrongInput
        Names the thing, the value, and what was expected.
    """
    check_name("source", event.source)
    check_name("stream", event.stream)
    check_name("group", event.group)


def check_registration(event: Register) -> None:
    """Check what a receiver says of itself: producers, consumers and the metrics page take it as it is.

    Raises
    ------
    WrongInput
        Names the field, the value, and what was expected.
    """
    check_name("receiver", event.receiver_id)
    if not 1 <= len(event.addresses) <= MAX_ADDRESSES:
        raise WrongInput(f"receiver with {len(event.addresses)} addresses: expected 1 to {MAX_ADDRESSES}")
    for address in [*event.addresses, *([event.data_address] if event.data_address else [])]:
        if type(address) is not str:
            raise WrongInput(f"address {address!r:.80}: expected text")
        resolve(address)
    for uuid, facts in event.tiers.items():
        if type(uuid) is not str or type(facts) is not dict:
            raise WrongInput(f"tier {uuid!r:.80}: expected its uuid and a map")
    metrics = event.load.get("metrics", [])
    if type(metrics) is not list or len(metrics) > MAX_METRICS or not all(map(_is_metric, metrics)):
        raise WrongInput(f"metrics of {event.receiver_id}: expected at most {MAX_METRICS} times [name, labels, number]")


def _is_metric(entry: Any) -> bool:
    if type(entry) is not list or len(entry) != 3:
        return False
    name, labels, value = entry
    good = type(name) is str and METRIC_NAME.fullmatch(name) and type(labels) is dict and type(value) in (int, float)
    return bool(good) and all(
        type(key) is str and METRIC_NAME.fullmatch(key) and type(text) is str for key, text in labels.items()
    )


def check_values(event: GroupRequest) -> None:
    """Check ids and ranges, which the event itself cannot know; raise WrongInput."""
    if isinstance(event, Seek | DeleteGroup):
        return
    if isinstance(event, Nack | Explain | SettleDeadLetters):
        if len(event.ids) > MAX_RANGES:
            raise WrongInput(f"{len(event.ids)} ids: expected at most {MAX_RANGES}")
        for one in event.ids:
            check_id(one)
    else:
        check_ranges(event.done if isinstance(event, GetNext) else event.ranges)


def check_ranges(ranges: Sequence[Any]) -> None:
    """Raise WrongInput unless these are pairs [lo, hi] of ids with lo <= hi, not too many."""
    if len(ranges) > MAX_RANGES:
        raise WrongInput(f"{len(ranges)} ranges: expected at most {MAX_RANGES}")
    for one in ranges:
        if type(one) is not list or len(one) != 2:
            raise WrongInput(f"range {one!r:.80}: expected [lo, hi]")
        lo, hi = check_id(one[0]), check_id(one[1])
        if lo > hi:
            raise WrongInput(f"range {one!r:.80}: expected lo <= hi")
