"""What tests of the clients of ASAP::O share."""

from __future__ import annotations

from typing import Any

import pytest

from asapo import Producer
from tests.asapo_clients import ClientError


def fill(producer: Producer, stream: str, ids: range | list[int], *, last: str | None = None) -> None:
    """Send messages; `last` finishes the stream and names the next one."""
    for n in ids:
        producer.send(bytes([n % 256]) * n, stream=stream, id=n, meta={"n": n, "sample": {"name": f"é{n % 2}"}})
    producer.flush()
    if last is not None:
        producer.finish_stream(stream, next_stream=last)


def raised(call: Any, *args: Any, **kwargs: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call(*args, **kwargs)
    return caught.value
