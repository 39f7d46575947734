"""Reading a stream by id without a group, so that no cursor, no lease and no other reader is touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from asapo_work.cli.place import Place
from asapo_work.cli.show import parts_of
from asapo_work.consumer import Consumer
from asapo_work.message import Message

PAGE: Final = 250
"""Messages in one answer: leaves room for long metadata."""


def scan(consumer: Consumer, place: Place, *, where: str = "", after: int = 0, upto: int = 0) -> Iterator[Message]:
    """Return all messages above id `after` (and up to `upto` if that is not 0) by ascending id, datasets in parts."""
    bound = f" AND _id <= {upto}" if upto else ""
    condition = f"({where}) AND " if where else ""
    for page in consumer.query_pages(f"{condition}_id > {after}{bound}", stream=place.stream, page=PAGE):
        yield from parts_of(page)
