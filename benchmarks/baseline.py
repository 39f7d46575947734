"""The baseline of the path: what two sockets, one file and one map cost with the same checksum, nothing else.

Three processes as in the product: `sender` (checksum, send), `receiver` (recv_into a ring with MSG_WAITALL, pwrite) and
`reader` (maps the file once, reads every byte). Run as `python -m benchmarks.baseline ROLE`.
"""

from __future__ import annotations

import mmap
import os
import queue
import socket
import struct
import sys
import threading
import time

import numpy as np
import xxhash
from numpy.typing import NDArray

from benchmarks.frames import read_every_byte, ring, sums
from benchmarks.roles import answer, rounds

HEADER = struct.Struct("<QQQ")  # id, size, checksum
RING_SLOT_BYTES = 64_000_000


def sender() -> None:
    """Each round: connect, send n frames, wait for the receiver's last ack."""
    frames: list[NDArray[np.uint8]] = []
    for facts in rounds():
        size, n = facts["size"], facts["n"]
        if not frames or frames[0].nbytes != size:
            frames = ring(size)
        link = socket.create_connection(("127.0.0.1", facts["port"]))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started_s = time.monotonic()
        for i in range(n):
            frame = frames[i % len(frames)]
            _send_all(link, HEADER.pack(i + 1, size, xxhash.xxh3_64_intdigest(frame.data)), frame)
        assert link.recv(1) == b"k"
        link.close()
        answer(started_s=started_s)


def _send_all(link: socket.socket, header: bytes, frame: NDArray[np.uint8]) -> None:
    sent = link.sendmsg((header, frame.data))
    if sent < len(header) + frame.nbytes:
        link.sendall(frame.data[sent - len(header) :])


def receiver() -> None:
    """Each round: accept one sender, receive into a ring, write to one file, tell the reader where."""
    server = socket.create_server(("127.0.0.1", 0))
    notify = socket.create_server(("127.0.0.1", 0))
    for facts in rounds():
        answer(port=server.getsockname()[1], notify_port=notify.getsockname()[1])
        link, _ = server.accept()
        told, _ = notify.accept()
        told.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _receive_round(link, told, facts)
        link.sendall(b"k")
        link.close()
        told.close()
        answer()


def _receive_round(link: socket.socket, told: socket.socket, facts: dict[str, int]) -> None:
    size, n = facts["size"], facts["n"]
    slots = max(2, min(64, RING_SLOT_BYTES // size))
    memory = [bytearray(size) for _ in range(slots)]
    free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[int, bytearray]] = queue.SimpleQueue()
    for slot in memory:
        free.put(slot)
    file = os.open(str(facts["path"]), os.O_WRONLY)
    writer = threading.Thread(target=_write_round, args=(file, n, size, full, free, told))
    writer.start()
    header = bytearray(HEADER.size)
    for _ in range(n):
        link.recv_into(header, HEADER.size, socket.MSG_WAITALL)
        frame_id, length, _checksum = HEADER.unpack(header)
        slot = free.get()
        assert link.recv_into(slot, length, socket.MSG_WAITALL) == length
        full.put((frame_id, slot))
    writer.join()
    os.close(file)


def _write_round(
    file: int,
    n: int,
    size: int,
    full: queue.SimpleQueue[tuple[int, bytearray]],
    free: queue.SimpleQueue[bytearray],
    told: socket.socket,
) -> None:
    for i in range(n):
        frame_id, slot = full.get()
        assert os.pwrite(file, slot, i * size) == size
        free.put(slot)
        told.sendall(struct.pack("<QQ", frame_id, i * size))


def reader() -> None:
    """Each round: map the file once, read every byte of each frame as it is announced, check content and order."""
    for facts in rounds():
        size, n = facts["size"], facts["n"]
        expected = sums(ring(size))
        link = socket.create_connection(("127.0.0.1", facts["notify_port"]))
        with open(facts["path"], "rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        answer()
        note = bytearray(16)
        for i in range(n):
            link.recv_into(note, 16, socket.MSG_WAITALL)
            frame_id, offset = struct.unpack("<QQ", note)
            found = read_every_byte(view[offset : offset + size])
            if frame_id != i + 1 or found != expected[i % len(expected)]:
                answer(error=f"baseline: frame {i + 1} came as {frame_id} or was changed")
        link.close()
        answer(ended_s=time.monotonic())


if __name__ == "__main__":
    {"sender": sender, "receiver": receiver, "reader": reader}[sys.argv[1]]()
