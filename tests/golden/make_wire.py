"""Write the golden bytes of the present major version; what is there already is never rewritten.

An event that got a field since gets another file beside the first one, `Announce.2.bin`: both stay readable.
"""

import json
from dataclasses import fields
from pathlib import Path

from asapo.wire.codec import encode
from asapo.wire.events import KINDS, Event
from asapo.wire.limits import VERSION
from asapo.wire.put import Put
from tests.unit.wire.test_codec import a_put, a_put_of_a_file, field_reprs, sample


def recorded(folder: Path, name: str) -> list[set[str]]:
    """Return the fields that each golden file of an event tells."""
    return [
        set(json.loads(path.read_text())) for path in folder.glob(f"{name}*.json") if path.name.split(".")[0] == name
    ]


def write(folder: Path, event: Event | Put) -> None:
    """Write an event unless there is a file with all its fields."""
    name = type(event).__name__
    there = recorded(folder, name)
    if {item.name for item in fields(event)} in there:
        return
    target = folder / (f"{name}.{len(there) + 1}.bin" if there else f"{name}.bin")
    target.write_bytes(encode(event))
    target.with_suffix(".len").write_text(str(event.nbytes if isinstance(event, Put) else 0))
    target.with_suffix(".json").write_text(json.dumps(field_reprs(event), indent=1) + "\n")


def stem_of(path: Path) -> str:
    """Return the name of the event that a file records."""
    return path.stem.partition("-")[0]


if __name__ == "__main__":
    folder = Path(__file__).parent / f"wire-{VERSION[0]}"
    folder.mkdir(exist_ok=True)
    events: list[Event | Put] = [
        a_put_of_a_file() if recorded(folder, "Put") else a_put(),
        *map(sample, KINDS.values()),
    ]
    for event in events:
        write(folder, event)
