"""A consumer's conversation with a folder: every request is answered at once, by the thread that makes it."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import Any, Final

from asapo.errors import AsapoError, LocalProtocolError
from asapo.wire.events import Event, Nack
from asapo_work.offline.answers import Answers
from asapo_work.session import Call, log_failure, unlooked

NO_HEADER: Final = b""


class FolderChannel:
    """`asapo_work.client.Conversation` without a peer. Thread-safe."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._later: deque[Call | tuple[type[Any], dict[str, Any]]] = deque()
        self._numbers = itertools.count(1)
        self._closed = False

    @property
    def closed(self) -> bool:
        """True when no call is possible any more."""
        return self._closed

    def begin(self, kind: type[Any], fields: dict[str, Any]) -> Call:
        """Answer a request.

        Raises
        ------
        WrongInput
            If a field is not acceptable.
        LocalProtocolError
            If the channel is closed.
        """
        with self._lock:
            if self._closed:
                raise LocalProtocolError("used after close; open the folder again")
            self._catch_up()
            return self._do(kind, fields)

    def post(self, kind: type[Any], fields: dict[str, Any]) -> None:
        """Do what nobody waits for; a refusal is logged.

        May run at any point of any thread, even inside the garbage collector while this very thread holds the lock;
        then it is done before the next request.
        """
        self._soon((kind, fields))

    def abandon(self, call: Call) -> None:
        """Take the messages back that a call brought and nobody will look at; may run anywhere, as `post`."""
        self._soon(call)

    def check(self, call: Call) -> bool:
        """Return whether `call` has its answer: always."""
        return call.done

    def call(self, kind: type[Any], fields: dict[str, Any], timeout_s: float) -> Event:
        """Answer a request; raises as `begin`, and the error that is the answer."""
        return self.result(self.begin(kind, fields), timeout_s)

    def result(self, call: Call, _timeout_s: float) -> Event:
        """Return the answer of a call or raise the error that came instead."""
        return call.result()

    def glance(self, call: Call, _timeout_s: float) -> bool:
        """Return whether `call` has its answer: always."""
        return call.done

    def close(self) -> None:
        """End it; nothing is left to be told."""
        with self._lock:
            self._catch_up()
            self._closed = True

    def _soon(self, item: Call | tuple[type[Any], dict[str, Any]]) -> None:
        self._later.append(item)
        if self._lock.acquire(blocking=False):
            try:
                self._catch_up()
            finally:
                self._lock.release()

    def _catch_up(self) -> None:
        while self._later:
            item = self._later.popleft()
            if isinstance(item, Call):
                fields = unlooked(item)
                if fields is None:
                    continue
                item = (Nack, fields)
            log_failure(self._do(*item))

    def _do(self, kind: type[Any], fields: dict[str, Any]) -> Call:
        call = Call(kind(request=next(self._numbers), **fields), NO_HEADER, None)
        try:
            call.finish(self._answers.answer(call.request))
        except AsapoError as exc:
            call.finish(None, error=exc)
        return call
