"""The bytes of messages over HTTP: what clients of ASAP::O call file transfer."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from functools import partial
from typing import Any, Final

from asapo.ask import Asker
from asapo.compat.names import Named, read_name
from asapo.compat.requests import FolderToken, TransferFile
from asapo.errors import StorageError, StreamState, WrongInput
from asapo.models import Row, SegmentInfo
from asapo.reader import PayloadReader
from asapo.wire.events import GetById
from asapo_broker.http.compat.answer import Answer, json_answer
from asapo_broker.http.compat.cores import Cores

FETCH_TIMEOUT_S: Final = 60.0
MAX_LINKS: Final = 64
"""Links to data servers; whose turn is longest ago makes room."""
DIGEST_MASK: Final = 2**64 - 1
"""Rows carry the checksum as a signed integer because databases do."""


class Transfers:
    """Answers requests for bytes: mapped on the receiver's host, else from its data server."""

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._reader = PayloadReader()
        self._lock = threading.Lock()
        self._links: OrderedDict[tuple[str, str], Asker] = OrderedDict()

    def folder_token(self, request: FolderToken) -> Answer:
        """Return what clients show with each transfer. It gives no right: each one is authorised by itself."""
        return Answer(secrets.token_hex(10).encode())

    def transfer(self, request: TransferFile) -> Answer:
        """Send the bytes of a message by its name.

        Raises
        ------
        WrongInput
            If no message has this name.
        StorageError
            If its bytes cannot be had.
        """
        named = read_name(request.name)
        if request.size_only:
            # Asked only where the metadata say 0 bytes, and ours are always true.
            return json_answer({"file_size": 0})
        try:
            rows = self._cores.rows(
                request.beamtime, GetById, source=named.source, stream=named.stream, ids=[named.message_id], min_parts=1
            )
        except StreamState:
            rows = None
        for values in rows.rows if rows is not None else ():
            row = Row._make(values[: len(Row._fields)])
            if row.substream == named.substream:
                assert rows is not None
                return Answer(self._bytes(request.beamtime, named, row, rows.segments.get(row.segment)))
        raise WrongInput(f"file {request.name!r:.100}: there is no such message in beamtime {request.beamtime}")

    def _bytes(self, beamtime: str, named: Named, row: Row, entry: Any) -> memoryview:
        segment = SegmentInfo(*entry[:5]) if entry is not None else None
        if segment is None and row.size:
            raise StorageError(f"no receiver is known that has message {row.id}; check that it is running")
        return self._reader.read(
            segment if row.segment > 0 else None,
            row.offset,
            row.size,
            checksum=row.checksum & DIGEST_MASK,
            fetch=partial(self._fetched, beamtime, named, segment, max(0, row.segment)),
        )

    def _fetched(self, beamtime: str, named: Named, segment: SegmentInfo | None, number: int) -> memoryview:
        if segment is None or not segment.data_address:
            raise StorageError(f"no data server is known that has message {named.message_id}; is the receiver running?")
        return self._link(segment.data_address, beamtime).fetch(
            source=named.source, stream=named.stream, message_id=named.message_id, substream=named.substream,
            segment=number,
        )  # fmt: skip

    def _link(self, address: str, beamtime: str) -> Asker:
        with self._lock:
            found = self._links.pop((address, beamtime), None)
            if found is None:
                found = Asker(address, beamtime=beamtime, timeout_s=FETCH_TIMEOUT_S, role="reader")
            self._links[address, beamtime] = found
            dropped = self._links.popitem(last=False)[1] if len(self._links) > MAX_LINKS else None
        if dropped is not None:
            dropped.close()
        return found

    def close(self) -> None:
        """Let go of files and links."""
        with self._lock:
            links = list(self._links.values())
            self._links.clear()
        for link in links:
            link.close()
        self._reader.close()
