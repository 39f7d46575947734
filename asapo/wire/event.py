"""The base of all events: fields are checked when an event is born, so code that holds one need not check again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple, cast

from asapo.errors import WrongInput
from asapo.models import MAX_ID


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


CHECKS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "int": (_whole, "an integer from 0 to 2**63 - 1"),
    "float": (_seconds, "a finite number of seconds, not negative"),
    "str": (lambda value: type(value) is str, "text"),
    "bool": (lambda value: type(value) is bool, "true or false"),
    "bytes": (lambda value: type(value) is bytes, "bytes"),
    "list[Any]": (lambda value: type(value) in (list, tuple), "a list"),
    "dict[Any, Any]": (lambda value: type(value) is dict, "a map"),
}
"""Field annotation to (test, what was expected)."""
TYPES: Final[dict[str, type]] = {
    "int": int, "float": float, "str": str, "bool": bool, "bytes": bytes, "list[Any]": list, "dict[Any, Any]": dict,
}  # fmt: skip
"""Field annotation to the type that values nearly always have."""


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events: every field is checked when the event is born.

    Raises
    ------
    WrongInput
        Names the event, the field, the value and what was expected.
    """

    def __post_init__(self) -> None:
        usual = USUAL[type(self)]
        values = usual.values(self)
        if tuple(map(type, values)) == usual.types:
            for number in usual.numbers(values):
                if not 0 <= number <= MAX_ID:
                    break
            else:
                return
        self._check()

    def _check(self) -> None:
        """Look at each field by itself: slower, but knows every rule and says what is wrong."""
        for name, check, expected in FIELD_CHECKS[type(self)]:
            value = getattr(self, name)
            if not check(value):
                raise WrongInput(f"{type(self).__name__}.{name} is {_short(value)}: expected {expected}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


FIELD_CHECKS: dict[type[Event], list[tuple[str, Callable[[Any], bool], str]]] = {}
"""Filled by `declare`."""


class Usual(NamedTuple):
    """What the fields of nearly all events of a kind look like: told from the rest with a few calls into C.

    Events are born for every request and every answer, and looking at each field in Python cost as much as the rest.
    """

    values: Callable[[Any], tuple[Any, ...]]
    """All fields of an event."""
    types: tuple[type, ...]
    numbers: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    """Those of the fields that are numbers: all good from 0 to MAX_ID, seconds as well."""


USUAL: dict[type[Event], Usual] = {}
"""Filled by `declare`."""


def _picker(getter: Callable[..., Any], keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return what takes a tuple of these out of something; the getters of `operator` do so from two on."""
    if len(keys) > 1:
        return cast("Callable[[Any], tuple[Any, ...]]", getter(*keys))
    one = getter(*keys) if keys else None
    return (lambda _: ()) if one is None else (lambda source: (one(source),))


def _usual(kind: type[Event]) -> Usual:
    items = fields(kind)
    types = tuple(TYPES[str(item.type)] for item in items)
    numbers = [at for at, expected in enumerate(types) if expected in (int, float)]
    return Usual(_picker(attrgetter, [item.name for item in items]), types, _picker(itemgetter, numbers))


def declare(kinds: Iterable[type[Event]]) -> None:
    """Learn from their annotations how the fields of these events are checked."""
    for kind in kinds:
        FIELD_CHECKS[kind] = [(item.name, *CHECKS[str(item.type)]) for item in fields(kind)]
        USUAL[kind] = _usual(kind)
