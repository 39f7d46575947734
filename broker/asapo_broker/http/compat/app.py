"""The ASGI side: takes a request of ASAP::O's clients, has it answered on a thread, sends the answer in one piece."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeAlias

from starlette.types import ASGIApp, Receive, Scope, Send

from asapo.ask import Asker
from asapo.compat import requests as asked
from asapo.compat.documents import no_message
from asapo.compat.errormap import http_status
from asapo.compat.routes import MAX_BODY_BYTES, is_ours, read_request
from asapo.errors import AsapoError, StreamState, WrongInput
from asapo_broker.http.compat.acknowledging import Acknowledging
from asapo_broker.http.compat.answer import Answer, no_message_answer
from asapo_broker.http.compat.arrivals import Arrivals
from asapo_broker.http.compat.authorise import AnyToken, Authoriser, right_of
from asapo_broker.http.compat.book import GroupBook
from asapo_broker.http.compat.cores import Cores
from asapo_broker.http.compat.discovery import Discovery
from asapo_broker.http.compat.listing import Listings
from asapo_broker.http.compat.reading import Reading
from asapo_broker.http.compat.streams import Streams
from asapo_broker.http.compat.transfer import Transfers

log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Any], Answer]

QUICK_THREADS: Final = 8
QUERY_THREADS: Final = 4
SLOW: Final = (asked.QueryMessages, asked.Streams, asked.Sources, asked.Size, asked.Unacknowledged, asked.TransferFile)
"""Requests that have threads of their own: what is quick does not wait for them."""
TEXT: Final = [(b"content-type", b"application/json")]


class CompatApp:
    """Answers what is one of ASAP::O's paths, and leaves all else to another application.

    Parameters
    ----------
    others : ASGI application
    core : Asker
        Link to the delivery core for questions about services.
    url : str
        The core's address.
    state_dir : path
        Local folder for what groups have read.
    authoriser : Authoriser
    """

    def __init__(
        self, others: ASGIApp, *, core: Asker, url: str, state_dir: Path, authoriser: Authoriser | None = None
    ) -> None:
        self._others = others
        self._authoriser = authoriser or AnyToken()
        self._cores = Cores(url)
        self._book = GroupBook(state_dir)
        streams = Streams(self._cores)
        self._discovery = Discovery(core)
        arrivals = Arrivals(streams)
        self._transfers = Transfers(self._cores)
        self._handlers = _handlers(
            self._discovery,
            Reading(streams, arrivals, self._book),
            Listings(streams),
            Acknowledging(streams, arrivals, self._book),
            self._transfers,
        )
        self._quick = ThreadPoolExecutor(QUICK_THREADS, "asapo-compat")
        self._slow = ThreadPoolExecutor(QUERY_THREADS, "asapo-compat-query")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not is_ours(scope["raw_path"]):
            await self._others(scope, receive, send)
            return
        body = await _body(receive)
        answer = await self._answer(scope, body)
        await send(
            {
                "type": "http.response.start",
                "status": int(answer.status),
                "headers": [*TEXT, (b"content-length", b"%d" % len(answer.body))],
            }
        )
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Scope, body: bytes) -> Answer:
        try:
            request = read_request(scope["method"], scope["raw_path"], scope["query_string"], body)
            if request is None:
                return Answer(b"no such call of ASAP::O", HTTPStatus.NOT_FOUND)
            self._authoriser.check(request, right_of(request))
            if isinstance(request, asked.FindService):
                return self._discovery.service(request, _host(scope))
            pool = self._slow if isinstance(request, SLOW) else self._quick
            return await asyncio.get_running_loop().run_in_executor(pool, self._carry_out, request)
        except AsapoError as error:
            return _refusal(error)

    def _carry_out(self, request: asked.CompatRequest) -> Answer:
        """Run the handler of a request; on a thread."""
        try:
            return self._handlers.get(type(request), _not_offered)(request)
        except AsapoError as error:
            return _refusal(error)
        except Exception as exc:
            log.exception("%s of %s/%s/%s failed", type(request).__name__, request.beamtime, request.source,
                          request.stream)  # fmt: skip
            text = f"the server failed on this request ({type(exc).__name__}); its log says more"
            return Answer(text.encode(), HTTPStatus.INTERNAL_SERVER_ERROR)

    def close(self) -> None:
        """End threads and links after what they are at."""
        self._quick.shutdown()
        self._slow.shutdown()
        self._transfers.close()
        self._cores.close()
        self._book.close()


def _handlers(
    discovery: Discovery, reading: Reading, listings: Listings, acknowledging: Acknowledging, transfers: Transfers
) -> dict[type[asked.CompatRequest], Handler]:
    """Return who answers what."""
    return {
        asked.FindReceivers: discovery.receivers,
        asked.ShowVersion: discovery.version,
        asked.CreateGroup: discovery.new_group,
        asked.Next: reading.next,
        asked.Last: reading.last,
        asked.ById: reading.by_id,
        asked.Streams: listings.streams,
        asked.Sources: listings.sources,
        asked.Size: listings.size,
        asked.QueryMessages: listings.query,
        asked.BeamtimeMetadata: listings.beamtime_metadata,
        asked.StreamMetadata: listings.stream_metadata,
        asked.PersistStream: listings.persist,
        asked.Acknowledge: acknowledging.acknowledge,
        asked.NegAcknowledge: acknowledging.hand_back,
        asked.Unacknowledged: acknowledging.unacknowledged,
        asked.LastAcknowledged: acknowledging.last,
        asked.SetMarker: acknowledging.set_marker,
        asked.DeleteStream: acknowledging.delete_stream,
        asked.FolderToken: transfers.folder_token,
        asked.TransferFile: transfers.transfer,
    }


def _not_offered(request: asked.CompatRequest) -> Answer:
    raise WrongInput(f"{type(request).__name__}: this server does not offer that call of ASAP::O yet")


def _refusal(error: AsapoError) -> Answer:
    """Return an error as clients read it."""
    if isinstance(error, StreamState):
        return no_message_answer(no_message(error))
    return Answer(error.message.encode("utf-8", "replace"), http_status(error))


async def _body(receive: Receive) -> bytes:
    """Return the body of a request, at most a byte more than is taken: the rest is read and forgotten."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        if size <= MAX_BODY_BYTES:
            parts.append(part)
            size += len(part)
        if not message.get("more_body", False):
            return b"".join(parts)[: MAX_BODY_BYTES + 1]


def _host(scope: Scope) -> str:
    """Return how the client named this server."""
    named = next((value for name, value in scope["headers"] if name == b"host"), b"")
    return str(named.decode("latin-1"))
