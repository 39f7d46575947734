"""One receiver: its threads, put together. A frame goes network → writer → indexer → network (decision 0002)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from asapo.hostinfo import boot_id
from asapo.index import IndexDirectory
from asapo.index.directory import FILE_NAME
from asapo.index.interface import MetadataIndex, OwnFile
from asapo.metrics import Counters
from asapo.models import StreamRef
from asapo.storage.layout import find_journals, journal_path, parse_segment_name, tier_root_of
from asapo.storage.message_files import remove_draft
from asapo.storage.recorded import head_of
from asapo.storage.slots import SegmentHandle
from asapo.storage.store import StreamStore
from asapo.storage.tier import Tier, read_tier_uuid
from asapo.transport import listen
from asapo.wire.events import Done, Failed, Register
from asapo.wire.limits import MAX_HEADER_BYTES
from asapo_receive.cache import RecentUnits
from asapo_receive.data_server import DataServer
from asapo_receive.deletions import Deletions
from asapo_receive.epochs import Epoch
from asapo_receive.indexer import Indexer
from asapo_receive.lifebook import Lifebook
from asapo_receive.network import Network
from asapo_receive.quotas import Quotas
from asapo_receive.registrar import Registrar
from asapo_receive.replay import replay_all
from asapo_receive.settings import ReceiverSettings
from asapo_receive.snapshots import Snapshots
from asapo_receive.units import Closing, Note, Request, Unit
from asapo_receive.writer import Writer

log = logging.getLogger(__name__)

OWN_BYTES: Final = 256 * 1024 * 1024
"""What a receiver takes beside frames, at most: indexes, headers, the interpreter."""
DRAIN_S: Final = 5.0
"""How long each of writer and indexer may take to finish what was taken in."""


class Receiver:
    """A running receiver; `serve` blocks until `stop` is called from another thread or a signal handler."""

    def __init__(self, settings: ReceiverSettings) -> None:
        self.settings = settings
        self.counters = Counters()
        self._stopped = threading.Event()
        self._epoch = Epoch(settings.state_dir, settings.receiver_id)
        self._lifebook = Lifebook(settings.state_dir, settings.receiver_id, self._epoch.number)
        self._tier = Tier.open(settings.data_dir)
        self._directory = IndexDirectory(
            settings.state_dir,
            declared_keys=settings.declared_keys,
            sorted_keys=settings.sorted_keys,
            session_timeout_s=settings.session_timeout_s,
        )
        self._deletions = Deletions(self._directory, self._tier.root, self._answer)
        todo = self._replay()
        other_bytes = settings.ingest_bytes + settings.cache_bytes + settings.memory_bytes + OWN_BYTES
        self._servers = [
            listen(url, max_part_bytes=settings.max_unit_bytes, other_bytes=other_bytes) for url in settings.listen
        ]
        self._data = listen(settings.data_listen, max_part_bytes=MAX_HEADER_BYTES, other_bytes=other_bytes)
        self.addresses = [server.address for server in self._servers]
        self.data_address = self._data.address
        self._build(todo)

    def _build(self, todo: list[Note | Closing]) -> None:
        settings, counters = self.settings, self.counters
        recent = RecentUnits(settings.cache_bytes)
        memory = RecentUnits(settings.memory_bytes)
        self._registrar = (
            Registrar(settings.broker, self._registration, self._deletions.submit) if settings.broker else None
        )
        self._snapshots = Snapshots(self._directory, self._tier.root)
        self._indexer = self._make_indexer(recent, memory)
        store = StreamStore(
            self._tier,
            settings.receiver_id,
            self._epoch.number,
            segment_bytes=settings.segment_bytes,
            on_opening=self._opening,
            on_closed=lambda segment: self._writer.closed(segment),
        )
        limit = settings.beamtime_bytes
        self._quotas = Quotas(self._tier.root, limit, counters) if limit else None
        self._writer = Writer(
            store,
            self._indexer.submit,
            counters,
            is_void=self._deletions.is_void,
            beamtime_bytes_per_s=settings.beamtime_bytes_per_s,
            quotas=self._quotas,
        )
        self._writer.submit(todo)
        self._network = Network(
            settings, self._epoch.number, self._servers, self._writer.submit, self._indexer.beat, counters
        )
        self._data_server = DataServer(
            self._data,
            self._directory,
            self._tier.root,
            receiver_id=settings.receiver_id,
            recent=recent,
            memory=memory,
            counters=counters,
        )

    def _make_indexer(self, recent: RecentUnits, memory: RecentUnits) -> Indexer:
        """Return the index thread's stage; the stages beside it are looked up when it calls them."""
        settings = self.settings
        return Indexer(
            self._directory,
            settings.receiver_id,
            self._epoch.number,
            register=self._register_segment,
            own_file=lambda path: OwnFile(path, settings.receiver_id, self._epoch.number, self._tier.uuid, boot_id()),
            finished=self._finished,
            note=lambda item: self._writer.submit([item]),
            again=lambda units: self._writer.submit(units),
            more_coming=lambda: self._writer.is_behind(),
            # A producer whose credit is used up must not wait for us while we wait for it.
            gather_bytes=settings.window_bytes // 4,
            announce=self._registrar.announce if self._registrar else lambda *_: None,
            recent=recent,
            memory=memory,
            counters=self.counters,
        )

    def _opening(self, segment: SegmentHandle) -> None:
        segment.begun = self._deletions.begun(segment.ref)
        self._lifebook.note(segment)

    def _answer(self, event: Done | Failed) -> None:
        if self._registrar:
            self._registrar.answer(event)

    def _finished(self, items: list[Unit] | list[Request]) -> None:
        self._network.finished(items)
        self._snapshots.note(items)

    def _replay(self) -> list[Note | Closing]:
        started_s = time.monotonic()
        todo: list[Note | Closing] = []
        stuck = self._deletions.finish_all()
        begun = {beamtime: self._directory.open(beamtime).last_deletion() for beamtime in self._directory.beamtimes()}
        left = self._lifebook.left_behind()
        self._look_for_lost_indexes(path for segments in left.values() for path in segments)
        for beamtime, segments in left.items():
            for path in segments:
                remove_draft(path)
            if beamtime in self._directory.lost:
                continue  # all of it is for asapo reindex
            index = self._directory.open(beamtime)
            for path in segments.keys() - index.known_segments(list(segments)):
                if segments[path] in stuck:
                    continue
                if Path(journal_path(path)).exists():  # otherwise it never came to be made
                    self._register_segment(index, path, segments[path])
        for beamtime in self._directory.beamtimes():
            index = self._directory.open(beamtime)
            count = replay_all(index, self.settings.receiver_id, todo, begun.get(beamtime, 0), stuck)
            if count:
                log.info("beamtime %s: %d messages of an older life indexed", beamtime, count)
        self._lifebook.forget()
        self.counters.set("asapo_receiver_replay_seconds", time.monotonic() - started_s)
        return todo

    def _look_for_lost_indexes(self, left: Iterable[str]) -> None:
        """Take note of beamtimes without an index that have journals beside those that our own lives left behind."""
        mine = set(map(journal_path, left))
        for folder in self._tier.root.iterdir():
            if not folder.is_dir() or (self.settings.state_dir / folder.name / FILE_NAME).exists():
                continue
            older = (path for path in find_journals(folder) if path.parent != folder and str(path) not in mine)
            heads = (head_of(path) for path in older)
            if beamtime := next((str(head["beamtime"]) for head in heads if head), ""):
                self._directory.lost.add(beamtime)
                log.error("beamtime %s has data and no index: stop the services and run asapo reindex", beamtime)

    def _register_segment(self, index: MetadataIndex, path: str, ref: StreamRef) -> int:
        epoch, tier = self._epoch.number, self._tier.uuid
        name = parse_segment_name(Path(path).name)
        if name is not None and name.epoch != epoch:  # of an older life, which may have written elsewhere
            epoch, tier = name.epoch, read_tier_uuid(tier_root_of(path))
        return index.register_segment(path, self.settings.receiver_id, epoch, tier, boot_id(), ref)

    def _registration(self) -> Register:
        self.counters.set("asapo_receiver_up", 1)
        return Register(
            self.settings.receiver_id,
            self._epoch.number,
            self.addresses,
            self.data_address,
            boot_id(),
            {self._tier.uuid: {"root": str(self._tier.root), "free_bytes": self._tier.free_bytes()}},
            {"metrics": self.counters.snapshot()},
        )

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Run all threads until `stop`; then acknowledge what was taken in, close segments, and return."""
        stages: list[Any] = [self._writer, self._indexer, self._data_server, self._snapshots, self._deletions]
        stages += [stage for stage in (self._registrar, self._quotas) if stage is not None]
        threads = [
            threading.Thread(target=stage.run, name=f"asapo-{type(stage).__name__.lower()}", daemon=True)
            for stage in stages
        ]
        for thread in threads:
            thread.start()
        network = threading.Thread(target=self._network.run, name="asapo-network", daemon=True)
        network.start()
        ready()
        self._stopped.wait()
        self._shut_down(network, threads)

    def _shut_down(self, network: threading.Thread, threads: list[threading.Thread]) -> None:
        # The writer and the indexer drain first, so that the network thread can still acknowledge.
        self._writer.submit(None)
        for thread in threads[:2]:
            thread.join(DRAIN_S)
        # An index that is still away is given up: what waits for it is journaled, and indexed at the next start.
        self._indexer.abandon = True
        for thread in threads[:2]:
            thread.join(2.0)
        self._snapshots.stop()
        self._deletions.stop()
        self._network.stop()
        network.join(2.0)
        self._data_server.stop()
        for stage in (self._registrar, self._quotas):
            if stage is not None:
                stage.stop()
        for thread in threads[2:]:
            thread.join(2.0)
        for server in [*self._servers, self._data]:
            server.close()
        self._directory.close()
        self._lifebook.close()
        self._epoch.close()

    def stop(self) -> None:
        """Ask `serve` to end. Any thread, or a signal handler."""
        self._stopped.set()
