"""Recordings of small frames, and how a test opens them."""

import numpy as np

import asapo
from asapo.index.snapshot_write import write_snapshot
from asapo.models import Format, StreamRef
from asapo.storage.recorded import journals_in
from asapo_work import OfflineConsumer
from tests.recording import BEAMTIME, Recording

FRAME = Format("<u2", (2, 3))


def frame(number: int) -> bytes:
    return np.full((2, 3), number, "<u2").tobytes()


def frames(recording: Recording, *ids: int, stream: str = "s") -> None:
    for number in ids:
        recording.put([number], stream=stream, payloads=[frame(number)], form=FRAME)


def opened(recording: Recording, *, snapshots: bool = False, verify: bool = False) -> OfflineConsumer:
    """End the recording and open its folder."""
    assert recording.store.close()
    if snapshots:
        for folder in (recording.folder / "det").iterdir():
            ref = StreamRef(BEAMTIME, "det", folder.name)
            write_snapshot(folder, recording.directory.path(BEAMTIME), ref, list(journals_in(folder).values()))
    return asapo.open(recording.folder, source="det", verify=verify)
