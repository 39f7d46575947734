"""Routes of the HTTP front."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from asapo.ask import Asker
from asapo.errors import AsapoError, to_wire
from asapo.wire.events import Describe, ListReceivers
from asapo_broker.http.metrics import exposition


def make_app(core: Asker) -> FastAPI:
    """Return the application; `core` is its link to the delivery core."""
    app = FastAPI(title="asapo", docs_url=None, redoc_url=None)

    # Plain functions, not coroutines: they run on the thread pool, where waiting for the core blocks nobody.
    @app.get("/health")
    def health() -> Response:
        """Say whether frames can be taken in and given out: 200 when the core and a receiver are there, else 503."""
        try:
            receivers = _receivers(core)
        except AsapoError as exc:
            return JSONResponse({"status": "down", "broker": "down", "receivers": 0, "error": to_wire(exc)}, 503)
        good = bool(receivers)
        answer = {"status": "up" if good else "down", "broker": "up", "receivers": len(receivers)}
        return JSONResponse(answer, 200 if good else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        """Give the numbers of all services as Prometheus text; a core that is away shows as `asapo_broker_up 0`."""
        try:
            services = _numbers(core)
        except AsapoError:
            services = [({}, [("asapo_broker_up", {}, 0.0)])]
        return Response(exposition(services), media_type=CONTENT_TYPE_LATEST)

    return app


def _receivers(core: Asker) -> list[dict[str, Any]]:
    answer = core.ask(ListReceivers)
    return list(answer["receivers"]) if isinstance(answer, dict) else []


def _numbers(core: Asker) -> list[tuple[dict[str, str], Any]]:
    answer = core.ask(Describe, source="", stream="")
    own = answer["metrics"] if isinstance(answer, dict) else []
    services: list[tuple[dict[str, str], Any]] = [({}, [("asapo_broker_up", {}, 1.0), *own])]
    for receiver in _receivers(core):
        services.append(({"receiver": receiver["receiver_id"]}, receiver["load"].get("metrics", [])))
    return services
