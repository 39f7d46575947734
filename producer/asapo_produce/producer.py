"""`Producer`: what a detector program uses."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import Any, Self

from xxhash import xxh3_64_intdigest

from asapo.errors import AsapoError, LocalProtocolError, WrongInput
from asapo.models import check_id, check_name
from asapo.wire.events import FinishStream, OpenStream, SetMeta
from asapo.wire.limits import MIB
from asapo_produce.arguments import (
    check_part,
    greeting,
    level_of,
    one_each,
    origin_of,
    path_of,
    time_of,
    times_of,
    transport_of,
    whole_number,
)
from asapo_produce.batches import check_ids, chunks, frames_of
from asapo_produce.buffers import BufferPool
from asapo_produce.callbacks import CallbackThread
from asapo_produce.discovery import Asking, Discovery, Fixed
from asapo_produce.engine import Engine
from asapo_produce.handles import BatchHandle, ProducerStats, SendHandle
from asapo_produce.lifetime import CLOSE_AFTER_ERROR_S, RUNNING, end, left_s
from asapo_produce.metas import Meta, meta_text, meta_texts
from asapo_produce.payloads import dtype_name, take
from asapo_produce.send_queue import SendQueue
from asapo_produce.streams import StreamBook
from asapo_produce.units import Block, Single


class Producer:
    """Sends messages of one data source to the receivers.

    Parameters
    ----------
    url : str
        The broker's address; it names the receivers.
    beamtime, source : str
        Where the messages belong.
    receivers : addresses, optional
        Receivers to use instead of asking a broker; units are spread over all of them.
    queue_bytes : int, unit bytes
        Budget of what is sent and not yet acknowledged. One message larger than that goes alone.
    queue_timeout_s : float, unit s, optional
        How long `send` waits for room; None waits for ever, 0 raises QueueFull at once.
    level : {"written", "memory"}
        When a message counts as acknowledged (R25).
    pack : bool
        Whether small messages that wait together share a wire unit.
    transport : {"auto", "tcp", "ipc"}
        "auto" takes ipc to a receiver on the same host.
    token : str
        Proof that this producer may write to the beamtime.
    name : str
        For logs and listings; host, program and process id when empty.
    retry_s : float, unit s
        How long what may pass (disk full, index away, link after link lost with it) is retried before the handle fails.
    request_timeout_s : float, unit s
        How long to wait for a receiver when a stream must be asked for its highest id.

    Notes
    -----
    Thread-safe. Belongs to the process that made it: make a new one after a fork.
    """

    def __init__(
        self,
        url: str = "asapo://127.0.0.1:8400",
        *,
        beamtime: str,
        source: str,
        receivers: Iterable[str] | None = None,
        queue_bytes: int = 1024 * MIB,
        queue_timeout_s: float | None = None,
        level: str = "written",
        pack: bool = True,
        transport: str = "auto",
        token: str = "",
        name: str = "",
        retry_s: float = 30.0,
        request_timeout_s: float = 60.0,
    ) -> None:
        hello = greeting(beamtime, source, name, token)
        self._level = level_of(level)
        transport = transport_of(transport)
        discovery: Discovery = Asking(url, hello, transport) if receivers is None else Fixed(receivers)
        self.beamtime, self.source, self.name = beamtime, source, hello.name
        self._pid = os.getpid()
        self._closed = False
        self._queue_timeout_s = queue_timeout_s
        self._request_timeout_s = request_timeout_s
        self._finished: dict[str, str] = {}
        self._numbering_lock = threading.Lock()
        self._callbacks = CallbackThread()
        self._buffers = BufferPool(queue_bytes)
        self._queue = SendQueue(queue_bytes, self._callbacks.call, pack=pack)
        self._engine = Engine(self._queue, discovery, hello, retry_s)
        RUNNING[self._engine] = (self._pid, self._queue)
        self._abandon = weakref.finalize(self, self._engine.stop_when_idle)
        self._abandon.atexit = False
        self._engine.start()

    # -- sending ----------------------------------------------------------------------------------------------------

    def send(
        self,
        data: Any = None,
        *,
        id: int | None = None,
        stream: str = "default",
        meta: Meta = None,
        path: str | PurePath | None = None,
        substream: int = 0,
        dataset_size: int = 0,
        codec: str = "raw",
        shape: Sequence[int] | None = None,
        dtype: Any = None,
        acquired_ns: int | None = None,
        origin: Any = None,
        copy: bool = False,
        callback: Callable[[SendHandle], None] | None = None,
    ) -> SendHandle:
        """Send one message; return at once with a handle for its outcome.

        Parameters
        ----------
        data : ndarray, bytes, bytearray, memoryview, pathlib.Path or None
            The payload. A C-contiguous array or buffer is not copied: leave it unchanged until the handle is
            `released`, or give `copy=True`. Other layouts are copied. A path is read here. None: metadata only.
        id : int, optional
            Message id from 1; may leave gaps. Without it the SDK numbers the stream, starting above what it holds.
        stream : str
            Stream within the data source.
        meta : dict or JSON text, optional
            Metadata of the message, at most 1 MiB as JSON.
        path : str, optional
            Store the payload as a file of its own, below the stream's folder; DuplicateFile when the path is taken.
        substream, dataset_size : int
            Which part, from 1, of a dataset of how many; 0 for a message that is no part.
        codec, shape, dtype
            Format of bytes that are compressed, or given without NumPy.
        acquired_ns : int, unit ns since the Unix epoch, optional
            Acquisition time; now when left out.
        origin : Origin or message, optional
            The message this result was computed from.
        copy : bool
            Copy the payload first, so that the caller's buffer is free when `send` returns.
        callback : callable, optional
            Called with the handle when the outcome is known (see `SendHandle.add_done_callback`).

        Raises
        ------
        WrongInput
            If something cannot be sent as it is; nothing was queued.
        QueueFull
            If the queue has no room within `queue_timeout_s`.
        StreamFinished, StreamBusy, DeadlineExceeded
            If the stream is finished; another session numbers it; no receiver answers which id comes next.
        """
        queue = self._queue
        book = self._open_book(stream, substream, dataset_size, explicit=id is not None)
        view, form = take(data, codec=codec, shape=shape, dtype=dtype, copy=copy)
        handle = SendHandle(queue.settled, book.later)
        if id is not None:
            handle.id = check_id(id if type(id) is int else whole_number(id))
        if callback is not None:
            handle.callbacks = [callback]
        item = Single(
            book,
            queue.lane(book, dataset_size, form, self._level),
            handle.id,
            view,
            xxh3_64_intdigest(view),
            "{}" if meta is None else meta_text(meta),
            time.time_ns() if acquired_ns is None else time_of(acquired_ns),
            None if origin is None else origin_of(origin),
            handle,
            "" if path is None else path_of(path, self._level),
        )
        queue.put(book, (item,), explicit=id is not None, timeout_s=self._queue_timeout_s)
        self._engine.ring()
        return handle

    def send_batch(
        self,
        frames: Any,
        *,
        ids: Sequence[int] | None = None,
        metas: Sequence[Meta] | None = None,
        stream: str = "default",
        substream: int = 0,
        dataset_size: int = 0,
        codec: str = "raw",
        shape: Sequence[int] | None = None,
        dtype: Any = None,
        acquired_ns: int | Sequence[int] | None = None,
        origins: Sequence[Any] | None = None,
        copy: bool = False,
        callback: Callable[[BatchHandle], None] | None = None,
    ) -> BatchHandle:
        """Send n messages in one wire unit (more when they are large): each has its own id and metadata.

        Parameters
        ----------
        frames : ndarray of shape (n, ...), or a sequence of payloads of one format
            One message for each. A C-contiguous array whose frames are multiples of 64 bytes is not copied, nor are
            frames from 200 kB on; what is not copied must stay unchanged until the handle is `released`.
        ids : n ascending ints, optional
            Message ids; the SDK numbers the stream when left out.
        metas : n dicts or JSON texts, optional
            Metadata of each message.
        acquired_ns : int or n ints, unit ns since the Unix epoch, optional
            Acquisition times; now when left out.
        origins : n origins, optional
            See `send`.
        callback : callable, optional
            Called with the handle when all outcomes are known.

        Returns
        -------
        BatchHandle
            Its `result()` gives the ids. The other parameters and errors are those of `send`.
        """
        book = self._open_book(stream, substream, dataset_size, explicit=ids is not None)
        found = frames_of(frames, codec=codec, shape=shape, dtype=dtype, copy=copy)
        known = None if ids is None else check_ids(ids, found.n)
        texts = meta_texts(metas, found.n)
        times = times_of(acquired_ns, found.n)
        sources = () if origins is None else [None if o is None else origin_of(o) for o in one_each(origins, found.n)]
        lane = self._queue.lane(book, dataset_size, found.format, self._level)
        parts = list(chunks(found, texts))
        handle = BatchHandle(self._queue.settled, book.later, len(parts))
        handle.ids = known or ()
        handle.callbacks = None if callback is None else [callback]
        blocks = [
            Block(
                book, lane, known[a:b] if known else (), view, found.sizes[a:b], sums, texts[a:b],
                times[8 * a : 8 * b], sources[a:b], handle,
            )
            for a, b, view, sums in parts
        ]  # fmt: skip
        self._queue.put(book, blocks, explicit=known is not None, timeout_s=self._queue_timeout_s)
        self._engine.ring()
        return handle

    def _open_book(self, stream: str, substream: int, dataset_size: int, *, explicit: bool) -> StreamBook:
        if self._closed or os.getpid() != self._pid:
            self._check_usable()
        if substream or dataset_size:
            check_part(substream, dataset_size)
        book = self._queue.book(stream, substream)
        if not explicit and book.numbering is None:
            self._start_numbering(book)
        return book

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise LocalProtocolError(f"Producer of process {self._pid}: make a new Producer in the forked process")
        if self._closed:
            raise LocalProtocolError("this Producer is closed; make a new one")

    def _start_numbering(self, book: StreamBook) -> None:
        with self._numbering_lock:
            if book.numbering is not None or book.finished:
                return
            found = self._engine.ask(
                lambda number: OpenStream(number, book.stream, book.substream, numbering=True), self._request_timeout_s
            )
            # Is it finished, then the queue refuses the message.
            self._queue.learn(
                book, found.get("id_max", 0), numbering=True, finished=bool(found.get("finished")),
                next_stream=found.get("next_stream", ""),
            )  # fmt: skip

    def get_buffer(self, nbytes: int | None = None, *, shape: tuple[int, ...] | None = None, dtype: Any = "|u1") -> Any:
        """Return a buffer to fill and send; it is recycled when it is released and nobody holds it any more.

        Parameters
        ----------
        nbytes : int, unit bytes
            Size of a plain buffer (a memoryview), or instead:
        shape, dtype
            Shape and element type of an array.
        """
        if shape is not None:
            return self._buffers.take_array(shape, dtype_name(dtype))
        if nbytes is None:
            raise WrongInput("get_buffer: give nbytes, or shape and dtype")
        return self._buffers.take(nbytes)

    # -- streams and metadata ---------------------------------------------------------------------------------------

    def finish_stream(self, stream: str = "default", *, next_stream: str = "", timeout_s: float = 60.0) -> None:
        """Wait for the acknowledgements of a stream and record that nothing more will come; repeatable.

        Raises
        ------
        DeadlineExceeded
            If acknowledgements or the answer do not come within `timeout_s`.
        """
        self._check_usable()
        if next_stream:
            check_name("stream", next_stream)
        if self._finished.get(stream) == next_stream:
            return
        deadline_s = time.monotonic() + timeout_s
        last_id = self._queue.close_stream(stream, timeout_s)
        if not last_id:
            found = self._engine.ask(lambda number: OpenStream(number, stream), left_s(deadline_s))
            last_id = found.get("id_max", 0)
            self._queue.learn(self._queue.book(stream, 0), last_id, numbering=False, finished=True)
        self._engine.ask(lambda number: FinishStream(number, stream, last_id, next_stream), left_s(deadline_s))
        self._finished[stream] = next_stream
        self._queue.book(stream, 0).next_stream = next_stream

    def set_stream_meta(self, stream: str, meta: Meta, *, timeout_s: float = 60.0) -> None:
        """Set the metadata of a stream; replaces what was there."""
        self._check_usable()
        text = meta_text(meta)
        check_name("stream", stream)
        self._engine.ask(lambda number: SetMeta(number, text, stream), timeout_s)

    def set_beamtime_meta(self, meta: Meta, *, timeout_s: float = 60.0) -> None:
        """Set the metadata of the beamtime; replaces what was there."""
        self._check_usable()
        text = meta_text(meta)
        self._engine.ask(lambda number: SetMeta(number, text), timeout_s)

    # -- life -------------------------------------------------------------------------------------------------------

    def flush(self, timeout_s: float | None = 60.0) -> None:
        """Wait until everything sent before this call is acknowledged or refused.

        Raises
        ------
        DeadlineExceeded
            If that takes longer than `timeout_s`.
        """
        self._check_usable()
        self._queue.wait_flushed(timeout_s)

    @property
    def stats(self) -> ProducerStats:
        """Counts so far."""
        queue = self._queue
        return ProducerStats(
            queue.sent, queue.acked, queue.failed, queue.queued_bytes, self._engine.resent, self._engine.links,
            self._buffers.recycled,
        )  # fmt: skip

    def close(self, timeout_s: float | None = 60.0) -> None:
        """Flush and leave; what has no outcome within `timeout_s` fails. A second call does nothing.

        Raises
        ------
        DeadlineExceeded
            If something was left without acknowledgement; its handles have failed with LinkLost.
        AsapoError
            If a receiver had refused this producer for good.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        try:
            self._queue.wait_flushed(timeout_s)
        finally:
            self._abandon.detach()
            end(self._engine, 5.0)
            RUNNING.pop(self._engine, None)
            self._callbacks.stop(5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(AsapoError):  # the block's own error says more
                self.close(CLOSE_AFTER_ERROR_S)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._engine.links} receivers"
        counts = f"{self._queue.acked} of {self._queue.sent} acknowledged"
        return f"<Producer {self.beamtime}/{self.source}, {state}, {counts}>"
