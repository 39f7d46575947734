"""The ASGI side of ASAP::O's paths: what is authorised, refused, left to others, and what a defect looks like."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asapo.ask import Asker
from asapo.compat.requests import CompatRequest
from asapo.errors import TokenRejected
from asapo_broker.http.compat.app import CompatApp
from asapo_broker.http.compat.authorise import Right

pytestmark = pytest.mark.needs_server

NOBODY = "asapo://127.0.0.1:9"


class OneToken:
    """Takes one token, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Right]] = []

    def check(self, request: CompatRequest, right: Right) -> None:
        self.asked.append((type(request).__name__, request.beamtime, right))
        if request.token != "good":
            raise TokenRejected("token: expected another one")


async def elsewhere(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"elsewhere"})


@pytest.fixture
def authoriser() -> OneToken:
    return OneToken()


@pytest.fixture
def app(tmp_path: Path, authoriser: OneToken) -> Iterator[CompatApp]:
    core = Asker(NOBODY, timeout_s=0.2)
    with (
        closing(core),
        closing(CompatApp(elsewhere, core=core, url=NOBODY, state_dir=tmp_path, authoriser=authoriser)) as made,
    ):
        yield made


def ask(app: CompatApp, method: str, path: str, *, query: str = "token=good", body: bytes = b"") -> tuple[int, bytes]:
    """Return status and body of the answer to one request."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "raw_path": path.encode(), "query_string": query.encode(),
        "headers": [(b"host", b"front:8401")],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], bytes(sent[1]["body"])


def test_other_paths_are_left_to_others(app: CompatApp, authoriser: OneToken) -> None:
    assert ask(app, "GET", "/health") == (299, b"elsewhere")
    assert not authoriser.asked


def test_each_request_is_authorised_before_it_is_carried_out(app: CompatApp, authoriser: OneToken) -> None:
    status, said = ask(app, "GET", "/v0.7/beamtime/bt1/det/s/g/next", query="token=bad")
    assert (status, said) == (401, b"token: expected another one")
    ask(app, "POST", "/v0.7/beamtime/bt2/det/s/delete", query="")
    assert authoriser.asked == [("Next", "bt1", Right.READ), ("DeleteStream", "bt2", Right.WRITE)]


def test_a_client_finds_us_by_the_name_it_used(app: CompatApp) -> None:
    assert ask(app, "GET", "/asapo-discovery/v0.1/asapo-broker") == (200, b"front:8401")


def test_a_core_that_is_away_is_a_service_that_is_not_available(app: CompatApp) -> None:
    status, said = ask(app, "GET", "/v0.7/beamtime/bt1/det/s/0/1")
    assert status == 503
    assert b"127.0.0.1:9" in said


@pytest.mark.expects_errors
def test_a_defect_is_told_without_its_inside(app: CompatApp, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(app._cores, "rows", fail)
    status, said = ask(app, "GET", "/v0.7/beamtime/bt1/det/s/0/1")
    assert (status, b"ZeroDivisionError" in said, b"secret" in said) == (500, True, False)
