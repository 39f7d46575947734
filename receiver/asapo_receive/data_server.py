"""The data server: payloads for readers that cannot map our files. A request names a message, never a file."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from asapo.errors import (
    AccessError,
    AsapoError,
    DamagedFile,
    LinkLost,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    StorageError,
    UnknownStream,
    WrongInput,
    known,
    to_wire,
)
from asapo.index import IndexDirectory
from asapo.metrics import Counters
from asapo.models import Row, StreamRef
from asapo.storage.files import default_files, is_removed
from asapo.storage.layout import is_segment
from asapo.storage.message_files import open_message_file
from asapo.transport import Message, Server, Waiter, Wakeup
from asapo.wire.codec import decode, encode
from asapo.wire.events import Beat, Bye, Failed, Fetch, Goodbye, Hello, Piece, Welcome
from asapo_receive.cache import RecentUnits
from asapo_receive.peers import check_hello

log = logging.getLogger(__name__)

MAX_OPEN_FILES: Final = 64
LOOK_S: Final = 5.0
"""Between two looks for files that are gone."""
MAX_READERS: Final = 4096
MAX_PATHS: Final = 65536
"""Files whose place is remembered; all are forgotten at once when there are more."""


class DataServer:
    """Serves readers on a thread of its own."""

    def __init__(
        self,
        server: Server,
        directory: IndexDirectory,
        tier_root: Path,
        *,
        receiver_id: str,
        recent: RecentUnits,
        memory: RecentUnits,
        counters: Counters,
    ) -> None:
        self._server = server
        self._directory = directory
        self._root = tier_root
        self._receiver_id = receiver_id
        self._recent = recent
        self._memory = memory
        self._counters = counters
        self._readers: OrderedDict[bytes, Hello] = OrderedDict()
        self._files: OrderedDict[tuple[str, int], int] = OrderedDict()
        """By beamtime and number: the path of a message's file may come again after its stream was deleted."""
        self._paths: dict[tuple[str, int], str] = {}
        self._look_s = 0.0
        self._bell = Wakeup()
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End `run`. Any thread."""
        self._stopping.set()
        self._bell.ring()

    def run(self) -> None:
        """Serve until `stop`."""
        waiter = Waiter(self._bell, self._server)
        while not self._stopping.is_set():
            waiter.wait(0.5)
            self._bell.hear()
            self._counters.set("asapo_data_server_handshakes_refused", self._server.refused())
            self._close_removed(time.monotonic())
            for message in iter(self._server.receive, None):
                self._take(message)
                if self._stopping.is_set():
                    break
        for file in self._files.values():
            os.close(file)
        self._bell.close()

    def _take(self, message: Message) -> None:
        try:
            self._handle(message)
        except (ProtocolError, WrongInput) as exc:
            self._drop(message.peer, exc)
        except Exception as exc:
            log.exception("a message of reader %s failed", message.peer.hex())
            what = f"the data server failed on this message ({type(exc).__name__}); see the receiver's log"
            self._drop(message.peer, LocalProtocolError(what))

    def _handle(self, message: Message) -> None:
        event = decode(message.header, len(message.payload))
        if type(event) is Hello:
            self._greet(message.peer, event)
        elif type(event) is Bye:
            self._readers.pop(message.peer, None)
        elif type(event) is Beat:
            self._server.send(message.peer, encode(Beat()))
        elif type(event) is Fetch and message.peer in self._readers:
            self._readers.move_to_end(message.peer)
            self._fetch(message.peer, self._readers[message.peer], event)
        else:
            raise RemoteProtocolError(f"{type(event).__name__} before Hello, or not for a data server")

    def _drop(self, peer: bytes, error: AsapoError) -> None:
        """End a link that broke the protocol; the others are served on."""
        self._counters.add("asapo_data_server_dropped_links_total", 1, code=error.code)
        log.warning("reader %s dropped: %s", peer.hex(), error)
        self._server.send(peer, encode(Goodbye(to_wire(error))))
        self._readers.pop(peer, None)

    def _greet(self, peer: bytes, hello: Hello) -> None:
        check_hello(hello, "reader")
        self._readers[peer] = hello
        while len(self._readers) > MAX_READERS:
            oldest, _ = self._readers.popitem(last=False)
            full = LinkLost(f"the data server serves {MAX_READERS} readers already; the one unused longest must go")
            self._server.send(oldest, encode(Goodbye(to_wire(full))))
        self._server.send(peer, encode(Welcome(self._receiver_id)))

    def _fetch(self, peer: bytes, hello: Hello, event: Fetch) -> None:
        try:
            ref = StreamRef(hello.beamtime, event.source, event.stream)
            row = self._row(ref, event)
            begin = min(event.offset, row.size)
            length = min(event.length or row.size, row.size - begin)
            payload = self._read(ref, row, begin, length)
        except (AsapoError, MemoryError) as exc:
            error = known(exc, f"read message {event.message_id}")
            self._counters.add("asapo_data_server_failed_total", 1, code=error.code)
            self._server.send(peer, encode(Failed(event.request, to_wire(error))))
            return
        self._counters.add("asapo_data_server_bytes_total", length)
        self._server.send(peer, encode(Piece(event.request, row.size, begin)), payload, copy=False)

    def _row(self, ref: StreamRef, event: Fetch) -> Row:
        index = self._directory.find(ref.beamtime)  # a reader's question creates nothing
        stream_no = None if index is None else index.stream_no(ref)
        found = None
        if index is not None and stream_no is not None:
            found = index.row(stream_no, event.message_id, event.substream)
        if found is not None and 0 < event.segment != Row._make(found).segment > 0:
            found = None  # of a stream that was deleted, and made anew since
        if found is None:
            raise UnknownStream(
                f"no message {event.message_id} in {ref}", source=ref.source, stream=ref.stream,
                message_id=event.message_id,
            )  # fmt: skip
        return Row._make(found)

    def _read(self, ref: StreamRef, row: Row, begin: int, length: int) -> Any:
        if not length:
            return b""
        held = self._memory if row.segment <= 0 else self._recent
        view = held.find((ref.beamtime, row.segment), row.offset + begin, length)
        if view is not None:
            return view
        if row.segment <= 0:
            raise StorageError(
                f"message {row.id} of {ref} was kept in memory only and has been forgotten; "
                "send with level='written' what must stay"
            )
        path = self._path(ref.beamtime, row.segment)
        buffer = bytearray(length)
        rest = memoryview(buffer)
        at = row.offset + begin
        try:
            while rest.nbytes and (
                n := os.preadv(self._file(ref.beamtime, row.segment, path), [rest], at)
            ):  # one call reads up to 2 GiB only
                rest, at = rest[n:], at + n
        except OSError as exc:
            raise StorageError(f"cannot read {path}: {exc.strerror}", path=path) from exc
        if rest.nbytes:
            raise DamagedFile(f"{path} ends at {at}", path=path, offset=at)
        return buffer

    def _path(self, beamtime: str, segment: int) -> str:
        path = self._paths.get((beamtime, segment))
        if path is None:
            info = self._directory.open(beamtime).segments([segment]).get(segment)
            if info is None:
                raise StorageError(f"segment {segment} is gone: its stream was deleted; ask for the message again")
            path = info.path
            if not Path(path).resolve().is_relative_to(self._root.resolve()):
                raise AccessError(f"segment {segment} does not lie on the tier of receiver {self._receiver_id}")
            if len(self._paths) >= MAX_PATHS:
                self._paths.clear()
            self._paths[beamtime, segment] = path
        return path

    def _close_removed(self, now_s: float) -> None:
        """Close files that are gone from their folders: as long as they are open they take room."""
        if now_s < self._look_s:
            return
        self._look_s = now_s + LOOK_S
        for key, file in list(self._files.items()):
            if is_removed(file):
                del self._files[key]
                with contextlib.suppress(OSError):
                    os.close(file)

    def _file(self, beamtime: str, segment: int, path: str) -> int:
        key = (beamtime, segment)
        file = self._files.pop(key, None)
        if file is None:
            if is_segment(path):
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            else:
                file = open_message_file(default_files(), self._root, path)
        self._files[key] = file
        if len(self._files) > MAX_OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return file
