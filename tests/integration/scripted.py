"""What peers that follow a script are asked for more than once."""

from asapo.testing.fake_broker import FakeStream, row

SILENT_URL = "tcp://127.0.0.1:9"
"""The discard port: nobody listens there."""


def end_with(stream: FakeStream, message_id: int) -> None:
    stream.rows.append(row(message_id))
    stream.finished = True
