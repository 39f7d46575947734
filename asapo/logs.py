"""Logging of our services: one line per event on stderr, JSON when asked for. Libraries never call this."""

from __future__ import annotations

import logging
import sys


def configure(*, level: str = "info", as_json: bool = False, service: str = "") -> None:
    """Send all log records of this process to stderr.

    Values are rendered by structlog, which escapes control characters, so one event stays one line whatever a stream is
    named.
    """
    import structlog

    renderer = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "service", "event"])
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                lambda _logger, _name, event: {**event, "service": service},
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
