"""Links between processes: parts go out in order, uncopied, or the call raises. Transports are chosen by URL scheme."""

from __future__ import annotations

from asapo.transport.base import Link, Message, Server
from asapo.transport.registry import connect, listen, resolve
from asapo.transport.wait import Waiter, Wakeup

__all__ = ["Link", "Message", "Server", "Waiter", "Wakeup", "connect", "listen", "resolve"]
