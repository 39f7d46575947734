"""Who is connected: peers (one per link) and sessions (one per client, which survive a lost link)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from asapo.errors import QueueFull, RemoteProtocolError, WrongInput
from asapo.models import check_name
from asapo.wire.events import SESSION_BYTES, Event, Hello
from asapo.wire.put import Put
from asapo.wire.session import HELLO_ROLES, Role, State, advance

KEPT_REPLIES: Final = 4
"""Replies that gave messages, kept per session: a client has a few requests under way at most."""
KEPT_BYTES: Final = 8 * 1024 * 1024
SERVED: Final = (Role.CONSUMER, Role.REGISTRANT)


@dataclass(slots=True, eq=False)
class Session:
    """One client: what it waits for, and the last replies, should the link break before it has them."""

    beamtime: str
    key: bytes
    peer: bytes
    """Link that was heard last: replies go there."""
    heard_s: float
    name: str = ""
    waiting: dict[int, Any] = field(default_factory=dict)
    """Request number to what waits; a request that comes again goes on waiting over the new link."""
    readers: set[Any] = field(default_factory=set)
    """Groups that have given messages to this session."""
    replies: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    kept_bytes: int = 0
    work: list[dict[str, Any]] = field(default_factory=list)
    """What its stages did, as it told last."""
    first_given: int = 0
    """Lowest number of a request that was given messages; 0 for none yet."""

    def gave(self, request: int) -> bool:
        """Say whether a request may have been given messages; not so before this client fell silent and came back."""
        return not request or 0 < self.first_given <= request

    def keep(self, request: int, reply: bytes) -> None:
        """Remember a reply that gave messages, so that the same request never takes others."""
        self.first_given = min(self.first_given or request, request)
        self.remember(request, reply)

    def remember(self, request: int, reply: bytes) -> None:
        """Remember the reply to a request that must not be carried out twice."""
        replies = self.replies
        replies[request] = reply
        self.kept_bytes += len(reply)
        while len(replies) > KEPT_REPLIES or (len(replies) > 1 and self.kept_bytes > KEPT_BYTES):
            self.kept_bytes -= len(replies.popitem(last=False)[1])


@dataclass(slots=True, eq=False)
class Peer:
    """One link."""

    identity: bytes
    heard_s: float
    role: Role = Role.CONSUMER
    state: State = State.GREETING
    session: Session | None = None

    @property
    def peer(self) -> bytes:
        """Where answers go that belong to no session."""
        return self.identity

    @property
    def beamtime(self) -> str:
        """Beamtime of the session, "" when there is none."""
        return self.session.beamtime if self.session is not None else ""


class Sessions:
    """All peers and sessions; bounded, so that nobody can make us hold more."""

    def __init__(self, max_sessions: int) -> None:
        self.peers: dict[bytes, Peer] = {}
        self.by_key: dict[tuple[str, bytes], Session] = {}
        self._max = max_sessions

    def greet(self, identity: bytes, hello: Hello, now_s: float) -> Peer:
        """Take in a link by its Hello.

        Raises
        ------
        RemoteProtocolError, WrongInput
            The Hello is not acceptable.
        QueueFull
            There are as many sessions as we keep.
        """
        role = HELLO_ROLES.get(hello.role)
        if role not in SERVED:
            raise WrongInput(f"role {hello.role!r}: this is the broker, it serves the roles consumer and receiver")
        if len(hello.session) != SESSION_BYTES:
            raise RemoteProtocolError(f"session of {len(hello.session)} bytes: expected {SESSION_BYTES}")
        peer = Peer(identity, now_s, role)
        peer.state = advance(role, State.GREETING, hello, RemoteProtocolError)
        key = (hello.beamtime, hello.session)
        if len(self.peers) >= 2 * self._max or (key not in self.by_key and len(self.by_key) >= self._max):
            raise QueueFull(f"the broker serves {self._max} sessions already; close some", limit=self._max)
        if role is Role.CONSUMER and hello.beamtime:
            check_name("beamtime", hello.beamtime)
            session = self.by_key.setdefault(key, Session(*key, identity, now_s))
            session.peer, session.heard_s, session.name = identity, now_s, hello.name[:255]
            peer.session = session
        self.peers[identity] = peer
        return peer

    def heard(self, peer: Peer, event: Event | Put, now_s: float) -> None:
        """Note that a peer spoke, and check that it was its turn."""
        peer.state = advance(peer.role, peer.state, event, RemoteProtocolError)
        peer.heard_s = now_s
        session = peer.session
        if session is not None:
            session.heard_s = now_s
            session.peer = peer.identity

    def forget(self, identity: bytes) -> Peer | None:
        """Forget a link; its session stays until it ends or falls silent."""
        return self.peers.pop(identity, None)

    def end(self, session: Session) -> None:
        """Forget a session and its links; giving back its leases is the caller's."""
        self.by_key.pop((session.beamtime, session.key), None)
        for identity in [peer.identity for peer in self.peers.values() if peer.session is session]:
            del self.peers[identity]

    def silent(self, now_s: float, timeout_s: float) -> tuple[list[Session], list[Peer]]:
        """Return the sessions and the links that were not heard for longer than the time-out."""
        return (
            [session for session in self.by_key.values() if now_s - session.heard_s > timeout_s],
            [peer for peer in self.peers.values() if now_s - peer.heard_s > timeout_s],
        )
