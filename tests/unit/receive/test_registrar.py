"""What the link to the broker carries, also when it was away or full for a while."""

from typing import Any

from asapo.wire.codec import decode
from asapo.wire.events import Announce
from asapo_receive.registrar import Registrar


class NarrowLink:
    """Takes messages while it has room."""

    def __init__(self) -> None:
        self.room = False
        self.sent: list[Any] = []

    def send(self, header: bytes, payload: bytes = b"", *, copy: bool = True) -> bool:
        if self.room:
            self.sent.append(decode(header))
        return self.room


def test_units_go_with_the_heads_of_their_own_beamtime() -> None:
    registrar = Registrar("tcp://127.0.0.1:9", lambda: None)  # type: ignore[arg-type, return-value]
    link = NarrowLink()
    registrar._link = link  # type: ignore[assignment]
    registrar.announce("a", [("det", "s", 1)], [["of a, lost"]])
    registrar.announce("b", [("det", "s", 5)], [["of b, lost"]])
    link.room = True
    registrar.announce("a", [("det", "s", 2)], [["of a"]])
    assert link.sent == [
        Announce("a", [["det", "s", 2]], [["of a"]]),
        Announce("b", [["det", "s", 5]], []),
    ]
    registrar.stop()
    registrar.run()  # which has nothing left to do but to end
