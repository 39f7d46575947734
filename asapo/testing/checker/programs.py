"""Producer and readers of a check as processes: `python -m asapo.testing.checker.programs send|read SETTINGS`.

SETTINGS is one JSON object. They print `ready` or `sending ID` lines, and end by themselves when the stream
is finished.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from asapo.errors import AsapoError, WrongInput
from asapo.testing.checker.content import Content
from asapo.testing.checker.evidence import Way
from asapo.testing.checker.readers import Reader, ReadSettings
from asapo.testing.checker.sender import Sender, SendSettings
from asapo.testing.faults import install_from_environment


def say(text: str) -> None:
    """Tell whoever started us."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(argv: list[str]) -> int:
    """Run one program, under the faults of the environment; 0 when it came to its end."""
    install_from_environment()
    try:
        what, text = argv
        settings: dict[str, Any] = json.loads(text)
        if what == "send":
            content = Content.from_facts(settings.pop("content"))
            Sender(SendSettings(**settings), content, say).run()
        elif what == "read":
            settings["way"] = Way(settings["way"])
            Reader(ReadSettings(**settings), say).run()
        else:
            raise WrongInput(f"program {what!r}: expected send or read")
    except (ValueError, TypeError, AsapoError) as exc:
        sys.stderr.write(f"checker {' '.join(argv[:1])}: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
