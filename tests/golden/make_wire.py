"""Write the golden bytes of the present major version; what is there already is never rewritten.

An event that got a field gets one more recording, `NAME-2`, `NAME-3`, ...: the older bytes must stay readable, too.
"""

import json
from pathlib import Path

from asapo.wire.codec import encode
from asapo.wire.events import KINDS, Event
from asapo.wire.limits import VERSION
from asapo.wire.put import Put
from tests.unit.wire.test_codec import a_put, field_reprs, sample


def stem_of(path: Path) -> str:
    """Return the name of the event that a file records."""
    return path.stem.partition("-")[0]


if __name__ == "__main__":
    folder = Path(__file__).parent / f"wire-{VERSION[0]}"
    folder.mkdir(exist_ok=True)
    events: list[Event | Put] = [a_put(), *map(sample, KINDS.values())]
    for event in events:
        name = type(event).__name__
        recorded = [json.loads(path.read_text()) for path in folder.glob(f"{name}*.json") if stem_of(path) == name]
        if any(field_reprs(event).keys() <= known.keys() for known in recorded):
            continue
        target = folder / f"{name}{f'-{len(recorded) + 1}' if recorded else ''}.bin"
        target.write_bytes(encode(event))
        target.with_suffix(".len").write_text(str(event.nbytes if isinstance(event, Put) else 0))
        target.with_suffix(".json").write_text(json.dumps(field_reprs(event), indent=1) + "\n")
