"""The receivers that are alive, as they registered themselves (R34)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asapo.wire.events import Register


@dataclass(frozen=True, slots=True)
class Receiver:
    """One receiver and when it was heard last."""

    info: Register
    peer: bytes
    heard_s: float


class Registry:
    """Receivers by id. One writer, the poll thread; others read maps that are replaced, never changed in place."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._receivers: dict[str, Receiver] = {}
        self.version = 0
        """Grows whenever `data_address` may answer otherwise than before."""
        self._data: dict[str, str] = {}
        """Receiver id, and tier uuid, to a data server's address."""

    def register(self, info: Register, peer: bytes, now_s: float) -> None:
        """Take note of a receiver or of its heartbeat; an older epoch of a receiver that is alive is ignored."""
        known = self._receivers.get(info.receiver_id)
        if known is not None and known.info.epoch > info.epoch:
            return
        self._receivers = {**self._receivers, info.receiver_id: Receiver(info, peer, now_s)}
        if known is None or known.info.data_address != info.data_address or known.info.tiers != info.tiers:
            self._index()

    def leave(self, peer: bytes) -> None:
        """Forget what registered over this peer."""
        self._receivers = {name: known for name, known in self._receivers.items() if known.peer != peer}
        self._index()

    def expire(self, now_s: float) -> list[str]:
        """Forget the receivers that fell silent and return their ids."""
        silent = [name for name, known in self._receivers.items() if now_s - known.heard_s > self._timeout_s]
        if silent:
            self._receivers = {name: known for name, known in self._receivers.items() if name not in silent}
            self._index()
        return silent

    def _index(self) -> None:
        data: dict[str, str] = {}
        for receiver in self._receivers.values():
            info = receiver.info
            if info.data_address:
                data[f"r:{info.receiver_id}"] = info.data_address
                data.update(dict.fromkeys([f"t:{uuid}" for uuid in info.tiers], info.data_address))
        self._data = data
        self.version += 1

    def data_address(self, receiver_id: str, tier_uuid: str) -> str:
        """Return who reads a segment for others: its receiver, else one that has the tier; "" when none is alive."""
        data = self._data
        return data.get(f"r:{receiver_id}") or data.get(f"t:{tier_uuid}", "")

    def any_peer(self) -> bytes | None:
        """Return the link of a receiver that is alive, None when there is none."""
        return next((receiver.peer for receiver in self._receivers.values()), None)

    def has_peer(self, peer: bytes) -> bool:
        """Say whether the receiver that registered over this link is alive."""
        return any(receiver.peer == peer for receiver in self._receivers.values())

    def listing(self) -> list[dict[str, Any]]:
        """Return the receivers as maps for an answer, ordered by id. Any thread."""
        receivers = self._receivers
        return [
            {
                "receiver_id": info.receiver_id,
                "epoch": info.epoch,
                "addresses": list(info.addresses),
                "boot_id": info.boot_id,
                "data_address": info.data_address,
                "tiers": info.tiers,
                "load": info.load,
            }
            for info in (receivers[name].info for name in sorted(receivers))
        ]

    def __len__(self) -> int:
        return len(self._receivers)
