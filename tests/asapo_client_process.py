"""Runs in the environment of ASAP::O's clients: calls of one client, one line of JSON each, answers likewise.

The first line is `{"kind": "consumer" | "producer", "args": [...]}`, each other one `{"call": name, "args": [...],
"kwargs": {...}}`. Answers are `{"result": ...}` or `{"error": class, "text": ..., ...}` with the exception's fields.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

FIELDS = ("id", "id_max", "next_stream", "partial_data")


def plain(found: Any) -> Any:
    """Return arrays as what tells them apart, bytes as lists of numbers, tuples as lists."""
    if hasattr(found, "tobytes"):
        return {"dtype": str(found.dtype), "size": found.size, "sha256": hashlib.sha256(found.tobytes()).hexdigest()}
    if isinstance(found, bytes):
        return list(found)
    if isinstance(found, (tuple, list)):
        return [plain(one) for one in found]
    return {key: plain(value) for key, value in found.items()} if isinstance(found, dict) else found


def answer(call: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Carry out one call."""
    try:
        return {"result": plain(call(*args, **kwargs))}
    except Exception as error:
        fields = {name: plain(getattr(error, name)) for name in FIELDS if hasattr(error, name)}
        return {"error": type(error).__name__, "text": str(error), **fields}


def main() -> None:
    """Serve until stdin ends."""
    first = json.loads(sys.stdin.readline())
    if first["kind"] == "consumer":
        import asapo_consumer

        client = asapo_consumer.create_consumer(*first["args"])
    else:
        import asapo_producer

        client = asapo_producer.create_producer(*first["args"])
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.write(json.dumps(answer(getattr(client, asked["call"]), asked["args"], asked["kwargs"])) + "\n")
        sys.stdout.flush()


main()
