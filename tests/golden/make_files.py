"""Write a data folder as this version leaves it; a folder that is there already is never rewritten.

What it holds is told by `expected.json`. Run it (`python -m tests.golden.make_files`) when a minor version adds
something to a file; files of every version that was ever made must stay readable.
"""

import json
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from asapo.index import schema, sorting
from asapo.index.snapshot_write import write_snapshot
from asapo.models import Format, Origin, StreamRef
from asapo.storage.recorded import journals_in
from tests.recording import BEAMTIME, Recording, dump

ROOT = "/data"
"""Stands in the index for the folder in which it was made."""


def record(root: Path) -> None:
    """Have a receiver leave a record of every kind, and files of every kind."""
    one = Recording(root)
    one.index.declare_keys(["n"])
    one.index.declare_sorted_keys(["sample.name"])
    one.meta('{"proposal":42}', stream="")
    one.put([1, 2], payloads=[b"a" * 12, b"b" * 12], form=Format("<u2", (2, 3)))
    one.meta('{"sample":"water"}')
    one.put([2, 3], payloads=[b"b" * 12, b"c" * 12], form=Format("<u2", (2, 3)))  # 2 is SUPERSEDED
    one.put([1], payloads=[b"other"])  # REFUSED
    one.put([7], metas=['{"n":7,"ä":"ü"}'], origins=[Origin("det", "s", 2)], stream="hits")
    one.put([1], payloads=[b""], stream="hits")
    one.put([5], stream="hits", path="scan 1/ä.cbf", payloads=[b"a file"])
    one.put([9], stream="modules", substream=2, dataset_size=3)
    for stream, last, following in (("s", 3, "hits"), ("hits", 7, ""), ("modules", 9, "")):
        one.finish(last, stream=stream, next_stream=following)
    sorting.MIN_ROWS = 1  # type: ignore[misc]  # so short a stream is not worth it otherwise
    assert one.index.sort_finished(StreamRef(BEAMTIME, "det", "hits"))
    one.close()
    for folder in sorted((one.folder / "det").iterdir()):
        ref = StreamRef(BEAMTIME, "det", folder.name)
        write_snapshot(folder, one.directory.path(BEAMTIME), ref, list(journals_in(folder).values()))
    with closing(sqlite3.connect(one.directory.path(BEAMTIME), isolation_level=None)) as index:
        index.execute("UPDATE segment SET path = replace(path, ?, ?)", (str(root), ROOT))
        index.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        index.execute("VACUUM")
        index.execute("PRAGMA journal_mode = DELETE")


def expected(database: Path) -> Any:
    """Return everything that the index says, as JSON has it."""
    said = dump(database)
    said["streams"] = sorted([*names, *facts] for names, facts in said["streams"].items())
    said["messages"] = sorted([*names, *facts] for names, facts in said["messages"].items())
    return json.loads(json.dumps(said))


def main() -> None:
    """Make the folder of the present version."""
    target = Path(__file__).parent / f"files-{schema.MAJOR}.{schema.MINOR}"
    if target.exists():
        sys.exit(f"{target} is there already: golden files are never rewritten")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name, "data")
        record(root)
        said = expected(root / "state" / BEAMTIME / "index.sqlite")
        shutil.copytree(root, target)
    (target / "expected.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
