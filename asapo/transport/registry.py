"""URL scheme to transport."""

from __future__ import annotations

from asapo.errors import ConfigError, WrongInput
from asapo.transport.base import Link, Server
from asapo.transport.zeromq import ZmqLink, ZmqServer
from asapo.wire.limits import MIB

SCHEMES = {"tcp": "tcp", "ipc": "ipc", "asapo": "tcp"}
"""URL scheme to ZeroMQ scheme."""
OTHER_BYTES = 2 * 1024 * MIB


def resolve(url: str) -> str:
    """Return the transport address of a URL a user gave: asapo://host:port is tcp.

    Raises
    ------
    WrongInput
        If the scheme is unknown or host or port are missing.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES or not rest:
        raise WrongInput(f"address {url!r}: expected asapo://host:port, tcp://host:port or ipc:///path")
    if SCHEMES[scheme] == "tcp":
        host, colon, port = rest.rstrip("/").rpartition(":")
        if not colon or not host or not (port.isdigit() or port == "*"):
            raise WrongInput(f"address {url!r}: expected host:port with a number as port")
        rest = f"{host}:{port}"
    return f"{SCHEMES[scheme]}://{rest}"


def is_loopback(host: str) -> bool:
    """Say whether an address (not a name, which may change its meaning) is this machine's own."""
    import ipaddress  # noqa: PLC0415 - only who listens needs it

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def connect(url: str, *, send_bytes: int = 0) -> Link:
    """Return a link that connects to `url` in the background; failure shows as LinkLost on `receive`."""
    return ZmqLink(resolve(url), send_bytes=send_bytes)


def listen(url: str, *, max_part_bytes: int, other_bytes: int = OTHER_BYTES) -> Server:
    """Return a server bound to `url`; tcp://127.0.0.1:* takes a free port.

    Parameters
    ----------
    max_part_bytes : int
        A longer part, and a message of more than that and a header, end their connection.
    other_bytes : int
        Memory that this process may take beside one message of each connection; by that those without end are known
        where the system does not count a connection's bytes.

    Raises
    ------
    ConfigError
        If others than this machine could connect: nobody is authorised yet, so only loopback is served (R36).
    ConnectFailed
        If the address is taken or not ours.
    """
    address = resolve(url)
    host = address.removeprefix("tcp://").rpartition(":")[0]
    if address.startswith("tcp://") and not is_loopback(host):
        raise ConfigError(
            f"listen address {url!r}: expected a loopback address such as tcp://127.0.0.1:*, because no authorisation "
            "is configured",
            key="listen",
        )
    return ZmqServer(address, max_part_bytes=max_part_bytes, other_bytes=other_bytes)
