"""What a request may contain, beyond what its event can know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asapo.errors import WrongInput
from asapo.models import check_id, check_name
from asapo.wire.events import GetNext, Nack
from asapo.wire.limits import MAX_RANGES
from asapo_broker.streams import GroupRequest


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


def check_values(event: GroupRequest) -> None:
    """Check ids and ranges, which the event itself cannot know; raise WrongInput."""
    if isinstance(event, Nack):
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
