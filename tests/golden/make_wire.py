"""Write the golden bytes of the present major version; what is there already is never rewritten."""

import json
from pathlib import Path

from asapo.wire.codec import encode
from asapo.wire.events import KINDS, Event
from asapo.wire.limits import VERSION
from asapo.wire.put import Put
from tests.unit.wire.test_codec import a_put, field_reprs, sample

if __name__ == "__main__":
    folder = Path(__file__).parent / f"wire-{VERSION[0]}"
    folder.mkdir(exist_ok=True)
    events: list[Event | Put] = [a_put(), *map(sample, KINDS.values())]
    for event in events:
        target = folder / f"{type(event).__name__}.bin"
        if not target.exists():
            target.write_bytes(encode(event))
            target.with_suffix(".len").write_text(str(event.nbytes if isinstance(event, Put) else 0))
            target.with_suffix(".json").write_text(json.dumps(field_reprs(event), indent=1) + "\n")
