"""Record what the real producer of ASAP::O sends: `python record_asapo.py FOLDER` in the environment of its wheels.

Writes one `NAME.bin` for each kind of request: the header as it came, old memory behind its texts included, and what
follows it.
"""

import json
import socket
import struct
import sys
import threading
from pathlib import Path

import asapo_producer
import numpy as np

HEADER = struct.Struct("<B7xQQQ3Q1024s1024s10s6x")
NAMES = iter(
    ["authorize", "message", "metadata-only", "dataset-part", "cache-only", "auto-id", "finish", "beamtime-meta"]
    + ["stream-meta"]
)


def read(connection: socket.socket, size: int) -> bytes:
    """Read exactly so many bytes; fewer at the end of the connection."""
    data = b""
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data


def take(listener: socket.socket, folder: Path) -> None:
    """Answer every request by "ok" and write it down."""
    connection, _ = listener.accept()
    while header := read(connection, HEADER.size):
        op_code, _, data_size, meta_size, mode = HEADER.unpack(header)[:5]
        sizes = [meta_size, data_size] if op_code != 8 and mode & 1 else [meta_size or data_size]
        body = b"".join(read(connection, size) for size in sizes) if op_code != 7 else read(connection, meta_size)
        folder.joinpath(f"{next(NAMES)}.bin").write_bytes(header + body)
        connection.sendall(struct.pack("<BxH1024s", op_code, 0, b""))


def discover(listener: socket.socket, receiver: int) -> None:
    """Tell where the receiver is."""
    body = json.dumps({"MaxConnections": 32, "Uris": [f"127.0.0.1:{receiver}"]}).encode()
    while True:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        connection.close()


def send(endpoint: str) -> None:
    """Send one request of each kind, one after the other."""
    producer = asapo_producer.create_producer(
        endpoint, "processed", "bt1", "auto", "det", "tok", 1, 5000, "node7_14543", "DefaultStep"
    )

    def settled() -> None:
        producer.wait_requests_finished(5000)

    producer.send(1, "processed/f1", b"0123456789", user_meta={"hit": 1, "sample": {"name": "été"}}, stream="run1")
    settled()
    producer.send(2, "processed/f2", None, user_meta={"hit": 0}, ingest_mode=10, stream="run1")
    settled()
    part = np.arange(3, dtype=np.uint8)
    producer.send(3, "processed/f3", part, dataset=(2, 3), ingest_mode=13, stream="run1")
    settled()
    producer.send(4, "processed/f4", b"cache", ingest_mode=9, stream="run1")
    settled()
    producer.send(0, "processed/f5", b"auto", auto_id=True, stream="run1")
    settled()
    producer.send_stream_finished_flag("run1", 5, next_stream="run2")
    settled()
    producer.send_beamtime_meta(json.dumps({"sample": "lysozyme"}))
    settled()
    producer.send_stream_meta(json.dumps({"scan": 1}), mode="update", upsert=False, stream="run1")
    settled()


def main() -> None:
    """Serve on free ports of the loopback, send, and leave."""
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    receiver, front = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    threading.Thread(target=take, args=(receiver, folder), daemon=True).start()
    threading.Thread(target=discover, args=(front, receiver.getsockname()[1]), daemon=True).start()
    send(f"127.0.0.1:{front.getsockname()[1]}")


if __name__ == "__main__":
    main()
