"""The HTTP front that clients of ASAP::O ask: killed, shared, and asked for what it must bear."""

from __future__ import annotations

import json
import socket
import struct
import threading
import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from asapo import Producer
from asapo.testing.launch import LocalServices
from tests.asapo_clients import ClientError, RealClient, real_consumer
from tests.integration.asapo.filling import fill

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]
real = pytest.mark.needs_asapo_clients


# -- the front itself ---------------------------------------------------------------------------------------------


@real
def test_marks_survive_the_front_being_killed(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        LocalServices(tmp_path_factory.mktemp("killed"), http=True) as services,
        Producer(services.native, beamtime="bt1", source="det") as producer,
        real_consumer(services.http, timeout_ms=10_000) as consumer,
    ):
        fill(producer, "s", range(1, 7))
        for _ in range(2):
            consumer.get_next("g", meta_only=True, stream="s")
            consumer.get_next("g", meta_only=True, stream="s", ordered=False)
        consumer.acknowledge("g", 2, stream="s")
        consumer.neg_acknowledge("g", 1, delay_ms=0, stream="s")
        services.kill("http")
        services.restart("http")
        found = [consumer.get_next("g", meta_only=True, stream="s")[1]["_id"] for _ in range(2)]
        assert found == [1, 3]
        assert consumer.get_next("g", meta_only=True, stream="s", ordered=False)[1]["_id"] == 3
        assert consumer.get_unacknowledged_messages("g", stream="s") == [1, 3, 4, 5, 6]


@real
def test_a_core_that_is_killed_and_started_again_costs_no_message(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        LocalServices(tmp_path_factory.mktemp("core"), http=True) as services,
        Producer(services.native, beamtime="bt1", source="det") as producer,
        real_consumer(services.http, timeout_ms=20_000) as consumer,
    ):
        fill(producer, "s", range(1, 41))
        found: dict[bool, list[int]] = {True: [], False: []}
        for n in range(40):
            if n in (13, 27):
                services.kill("broker")
                services.restart("broker")
            for ordered, ids in found.items():
                ids.append(consumer.get_next("g", meta_only=True, stream="s", ordered=ordered)[1]["_id"])
        assert found[True] == list(range(1, 41))
        # The core writes down what is done every 50 ms: what it had not yet comes once more, and all of it comes.
        while 40 not in found[False]:
            found[False].append(consumer.get_next("g", meta_only=True, stream="s", ordered=False)[1]["_id"])
        assert set(found[False]) == set(range(1, 41))


@real
def test_several_readers_of_a_group_get_each_message_once(
    services: LocalServices, producer: Producer, stream: str
) -> None:
    fill(producer, stream, range(1, 101))
    found: list[int] = []

    def read() -> None:
        with real_consumer(services.http) as consumer, suppress(ClientError):
            while True:
                found.append(consumer.get_next("g", meta_only=True, stream=stream)[1]["_id"])

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert sorted(found) == list(range(1, 101))


def ask(http: str, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send one request as it is and return status and body."""
    host, _, port = http.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), content


@pytest.mark.parametrize(
    ("method", "target", "status", "said"),
    [
        ("GET", "/asapo-discovery/v0.1/asapo-broker?token=T&protocol=v0.7", 200, b"127.0.0.1:"),
        ("GET", "//asapo-discovery/v0.1/asapo-file-transfer?token=T&protocol=v0.7", 200, b"127.0.0.1:"),
        ("GET", "/asapo-discovery/v0.1/asapo-receiver?protocol=v0.7", 200, b'{"MaxConnections":32,"Uris":[]}'),
        ("GET", "/asapo-discovery/v0.1/asapo-broker?token=T&protocol=v0.8", 415, b"v0.8"),
        ("GET", "/asapo-discovery/v0.1/asapo-broker?token=T&protocol=x", 400, b"version 'x'"),
        ("GET", "/v0.8/beamtime/bt1/det/s/size", 415, b"v0.8"),
        ("GET", "/v0.7/beamtime/bt1/det/s/unknown", 404, b"no such call"),
        ("GET", "/v0.7/beamtime/bt1/det/s/0/zero", 400, b"message id 'zero'"),
        ("POST", "/v0.7/beamtime/bt1/det/s/g/1", 400, b"JSON object"),
        ("GET", "/v0.7/beamtime/bt1/det/%FF/size", 400, b"UTF-8"),
    ],
)
def test_requests_that_clients_may_make_one_day(
    services: LocalServices, method: str, target: str, status: int, said: bytes
) -> None:
    found = ask(services.http, method, target)
    assert found[0] == status
    assert said in found[1]


def test_a_body_that_is_too_long_is_refused_and_not_kept(services: LocalServices) -> None:
    status, said = ask(services.http, "POST", "/v0.7/beamtime/bt1/det/s/0/querymessages", b"x" * 1_000_000)
    assert (status, b"expected at most" in said) == (400, True)


def test_the_rest_of_the_front_is_as_it_was(services: LocalServices) -> None:
    with urllib.request.urlopen(f"{services.http}/health") as answer:
        assert json.load(answer)["status"] == "up"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{services.http}/nothing")


DATA_SEGMENTS_IN = 152
"""Offset of `tcpi_data_segs_in` in the `tcp_info` of Linux, a 32-bit number."""


def test_an_answer_is_one_segment(services: LocalServices) -> None:
    """Two small ones would cost clients 40 ms each time: Nagle's algorithm and delayed acknowledgements."""
    host, _, port = services.http.removeprefix("http://").rpartition(":")

    def segments(connection: socket.socket) -> int:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return int(struct.unpack_from("<I", info, DATA_SEGMENTS_IN)[0])

    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for n in range(1, 21):
            connection.sendall(b"GET /v0.7/beamtime/bt1/det/none/g/next?token=T HTTP/1.1\r\nHost: h:1\r\n\r\n")
            answer = connection.recv(65536)
            assert answer.endswith(b"}")
            assert segments(connection) == n


# -- what the producer asks of the front --------------------------------------------------------------------------


@real
def test_the_real_producer_learns_of_streams_and_metadata(
    services: LocalServices, producer: Producer, stream: str
) -> None:
    fill(producer, stream, [1, 2, 3])
    producer.set_stream_meta(stream, {"scan": 1})
    host = services.http.removeprefix("http://")
    with RealClient("producer", host, "processed", "bt1", "auto", "det", "tok", 1, 2000) as client:
        found = client.get_version_info()
        assert (found["supported"], "0.1.0" in found["server"]) == (True, True)
        found = client.stream_info(stream)
        assert (found["lastId"], found["name"], found["finished"]) == (3, stream, False)
        assert client.last_stream()["lastId"] > 0
        assert client.get_stream_meta(stream) == {"scan": 1}
