"""A ledger for tests over real services: what was sent, what was acknowledged, and whether readers get just that.

A payload is a function of (seed, stream, id), so a reader knows what it must hold without asking the producer. Every
finding is reported under the name of the invariant that it breaks: loss, invention, order, once, torn, late.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import xxhash

from asapo import Consumer, Producer
from asapo.models import StreamRef
from asapo.storage.layout import encode_name, stream_dir
from asapo.testing.checker.offline import scan
from asapo.testing.launch import LocalServices

BEAMTIME = "bt"
SOURCE = "det"
PATIENCE_S = 45.0
"""Longest wait for a condition: the machine may be slow and busy with other things."""
SIZES = (0, 1, 700, 5_000, 64_000, 300_000)
"""Payload sizes: nothing, packed into shared wire units, and above the size that is packed."""
PAGE = 500


def payload(seed: int, stream: str, message_id: int, sizes: Sequence[int] = SIZES) -> bytes:
    """Return the payload of a message: the same bytes for the same arguments, in every process."""
    source = random.Random(f"{seed}/{stream}/{message_id}")
    return source.randbytes(source.choice(sizes))


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Return the first true value of `condition`; fail when there is none in time."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s in vain until {what}"
        time.sleep(0.01)
    return found


class Ledger:
    """What one stream was sent and what was promised about it. Thread-safe."""

    def __init__(self, stream: str = "default", *, seed: int = 1, sizes: Sequence[int] = SIZES) -> None:
        self.stream = stream
        self.seed = seed
        self.sizes = sizes
        self.invoked: set[int] = set()
        self.acked: set[int] = set()
        self.failed: dict[int, BaseException] = {}
        self._lock = threading.Lock()

    def payload(self, message_id: int) -> bytes:
        """Return what this message must hold."""
        return payload(self.seed, self.stream, message_id, self.sizes)

    def send(self, producer: Producer, message_id: int, **options: Any) -> Any:
        """Send a message and keep book of its outcome."""
        with self._lock:
            self.invoked.add(message_id)
        return producer.send(
            self.payload(message_id), id=message_id, stream=self.stream, meta={"n": message_id}, callback=self._settled,
            **options,
        )  # fmt: skip

    def _settled(self, handle: Any) -> None:
        error = handle.exception(0)
        with self._lock:
            if error is None:
                self.acked.add(handle.id)
            else:
                self.failed[handle.id] = error

    # -- checks -----------------------------------------------------------------------------------------------------

    def check_content(self, message_id: int, raw: Any, where: str) -> None:
        """Compare a payload that was read."""
        assert message_id in self.invoked, f"invention: {where} gave id {message_id}, which nobody sent"
        found, expected = xxhash.xxh3_64_hexdigest(raw), xxhash.xxh3_64_hexdigest(self.payload(message_id))
        assert found == expected, f"torn: {where} gave other bytes for id {message_id} ({len(raw)} bytes)"

    def check_ordered(self, messages: Iterable[Any], where: str) -> list[int]:
        """Check what an ordered reader of a fresh group was given; return the ids."""
        ids: list[int] = []
        for message in messages:
            self.check_content(message.id, message.raw, where)
            assert not message.late, f"late: {where} gave id {message.id} after it had passed it"
            assert not ids or message.id > ids[-1], f"order: {where} gave {message.id} after {ids[-1]}"
            ids.append(message.id)
        self.check_whole(ids, where)
        return ids

    def check_whole(self, ids: Iterable[int], where: str) -> None:
        """Check that everything acknowledged is there, nothing else but what was sent, and each once."""
        counts = Counter(ids)
        lost, invented = self.acked - counts.keys(), counts.keys() - self.invoked
        assert not lost, f"loss: {where} lacks {len(lost)} acknowledged ids: {sorted(lost)[:10]}"
        assert not invented, f"invention: {where} has ids that nobody sent: {sorted(invented)[:10]}"
        twice = [message_id for message_id, count in counts.items() if count > 1]
        assert not twice, f"once: {where} has ids more than once: {twice[:10]}"

    def check_index(self, data_dir: Path) -> None:
        """Look at the index file itself: one live row for each id."""
        self.check_whole(indexed_ids(data_dir, self.stream), "the index")

    def check_journals(self, data_dir: Path) -> None:
        """Look at the journals: one record that counts for each id, once what is known of others is noted."""
        ref = StreamRef(BEAMTIME, SOURCE, self.stream)

        def spare() -> dict[int, int]:
            counts = Counter(journaled_ids(data_dir, ref))
            self.check_whole(counts.keys(), "the journals")
            return {message_id: count for message_id, count in counts.items() if count > 1}

        wait_until(lambda: not spare(), f"each id counts once in the journals of {ref}")

    def check_by_id(self, consumer: Consumer, ids: Iterable[int] | None = None) -> None:
        """Read the acknowledged messages (or these) by id."""
        wanted = sorted(self.acked if ids is None else ids)
        for at in range(0, len(wanted), PAGE):
            some = wanted[at : at + PAGE]
            messages = consumer.get_by_id(some, stream=self.stream, timeout_s=PATIENCE_S)
            assert [message.id for message in messages] == some, "loss: get_by_id left ids out"
            for message in messages:
                self.check_content(message.id, message.raw, "get_by_id")
                assert message.meta == {"n": message.id}, f"torn: metadata of id {message.id}"

    def check_all(self, services: LocalServices, *, group: str = "fresh", **options: Any) -> list[int]:
        """Check the finished stream in every way there is; return its ids in order."""
        self.check_index(services.data_dir)
        self.check_journals(services.data_dir)
        with consumer_of(services) as consumer:
            self.check_by_id(consumer)
            stream = consumer.stream(
                group=group, stream=self.stream, batch=100, timeout_s=PATIENCE_S, follow=None, **options
            )
            return self.check_ordered((message for some in stream for message in some), f"group {group}")


def indexed_ids(data_dir: Path, stream: str, *, beamtime: str = BEAMTIME, source: str = SOURCE) -> list[int]:
    """Return the ids of a stream as the index file has them, in the order of arrival."""
    ref = StreamRef(beamtime, source, stream)
    path = data_dir / "state" / encode_name(ref.beamtime) / "index.sqlite"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=PATIENCE_S)) as connection:
        select = "SELECT id FROM message JOIN stream ON no = stream_no WHERE source = ? AND stream = ? ORDER BY key"
        return [row[0] for row in connection.execute(select, (ref.source, ref.stream))]


def journaled_ids(data_dir: Path, ref: StreamRef) -> list[int]:
    """Return the ids of the PUT records that count in the journals of a stream."""
    units, gone, _ = scan(stream_dir(data_dir / "beamline", ref))
    return [unit.put.ids[index] for unit in units for index in unit.counting(gone)]


def producer_of(services: LocalServices, **options: Any) -> Producer:
    """Return a producer that retries for as long as any test lasts."""
    return Producer(services.native, **{"beamtime": BEAMTIME, "source": SOURCE, "retry_s": 600.0, **options})


def consumer_of(services: LocalServices, **options: Any) -> Consumer:
    """Return a consumer that waits as patiently as the tests do."""
    return Consumer(
        services.native, **{"beamtime": BEAMTIME, "source": SOURCE, "timeout_s": PATIENCE_S, "verify": True, **options}
    )


class OrderedReader(threading.Thread):
    """Reads a stream to its end on a thread of its own, as an ordered group."""

    def __init__(
        self, services: LocalServices, ledger: Ledger, *, group: str = "ordered", idle_s: float = 2 * PATIENCE_S,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(name=f"reader-{group}", daemon=True)
        self._idle_s = idle_s
        self.ids: list[int] = []
        self.attempts: dict[int, int] = {}
        """Deliveries of each id that came more than once."""
        self.error: BaseException | None = None
        self._consumer = consumer_of(services, **options)
        self._ledger = ledger
        self._group = group

    def run(self) -> None:
        """Read until the stream is finished."""
        try:
            with self._consumer as consumer:
                for message in consumer.stream(
                    group=self._group, stream=self._ledger.stream, timeout_s=self._idle_s, follow=None
                ):
                    self._ledger.check_content(message.id, message.raw, self.name)
                    assert not message.late, f"late: {self.name} gave id {message.id} after it had passed it"
                    if message.attempt > 1:
                        self.attempts[message.id] = message.attempt
                    self.ids.append(message.id)
        except BaseException as exc:  # noqa: BLE001 - handed to the test
            self.error = exc

    def finish(self, timeout_s: float = 2 * PATIENCE_S) -> list[int]:
        """Wait for the end of the stream; return the ids in the order of delivery."""
        self.join(timeout_s)
        if self.error is not None:
            raise self.error
        assert not self.is_alive(), f"{self.name} hangs at {self.ids[-1:]} after {len(self.ids)} messages"
        return self.ids


class Load:
    """Sends messages with given ids on a thread of its own, at the pace of a detector, until it is stopped.

    At most `under_way` messages wait for their acknowledgement; `rate_hz` leaves the machine time for everybody else.
    """

    def __init__(
        self, producer: Producer, ledger: Ledger, ids: Iterator[int], *, under_way: int = 50, rate_hz: float = 300
    ) -> None:
        self.producer = producer
        self.ledger = ledger
        self._ids = ids
        self._period_s = 1 / rate_hz
        self._room = threading.Semaphore(under_way)
        self._stopping = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"load-{ledger.stream}", daemon=True)

    def _run(self) -> None:
        try:
            for message_id in self._ids:
                while not self._room.acquire(timeout=0.05):
                    if self._stopping.is_set():
                        return
                if self._stopping.wait(self._period_s):
                    return
                self.ledger.send(self.producer, message_id).add_done_callback(lambda _: self._room.release())
        except BaseException as exc:  # noqa: BLE001 - handed to the test
            self.error = exc

    def start(self) -> Load:
        """Begin."""
        self._thread.start()
        return self

    def wait_for_more(self, n: int = 100) -> None:
        """Wait until `n` more messages are acknowledged."""
        before = len(self.ledger.acked)

        def more() -> bool:
            if self.error is not None:
                raise self.error
            return len(self.ledger.acked) >= before + n

        wait_until(more, f"{n} more messages are acknowledged ({self.producer!r})")

    def stop(self) -> None:
        """Stop sending and wait for every outcome; nothing to do the second time."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._thread.join(PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.producer.flush(PATIENCE_S)


@contextmanager
def under_load(producer: Producer, ledger: Ledger, ids: Iterator[int], **options: Any) -> Iterator[Load]:
    """Send for as long as the block runs."""
    load = Load(producer, ledger, ids, **options).start()
    try:
        yield load
    finally:
        load.stop()


def sparse_ids(seed: int = 1, first: int = 1, longest_step: int = 7) -> Iterator[int]:
    """Yield ascending ids with holes, without end."""
    source, message_id = random.Random(seed), first
    while True:
        yield message_id
        message_id += source.randint(1, longest_step)
