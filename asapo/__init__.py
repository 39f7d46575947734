"""Detector streaming: send frames with `Producer`, read them back with `Consumer` or a `Stage`.

The names are looked up when they are first used, so importing `asapo` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asapo_produce import Producer
    from asapo_work import AsyncConsumer, Consumer, Stage
    from asapo_work import open as open

# Not `open`: it would hide the builtin one in programs that import all names.
__all__ = ["AsyncConsumer", "Consumer", "Producer", "Stage"]

_HOMES = {
    "AsyncConsumer": "asapo_work",
    "Consumer": "asapo_work",
    "Producer": "asapo_produce",
    "Stage": "asapo_work",
    "open": "asapo_work",
}

_EXTRAS = {
    "extra_data": "replay",
    "fabio": "replay",
    "fastapi": "server",
    "h5py": "hdf5",
    "hdf5plugin": "codecs",
    "imagecodecs": "codecs",
    "lark": "server",
    "prometheus_client": "server",
    "psycopg": "postgres",
    "pydantic": "server",
    "pydantic_settings": "server",
    "pyverbs": "rdma",
    "re2": "server",
    "rich": "tui",
    "structlog": "server",
    "uvicorn": "server",
    "uvloop": "server",
}


def __getattr__(name: str) -> object:
    """Import the room that holds `name` on first use and keep the result."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value: object = getattr(import_module(home), name)
    except ModuleNotFoundError as exc:
        raise ImportError(_advice(name, exc.name or ""), name=exc.name, path=exc.path) from exc
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_HOMES})


def _advice(name: str, missing: str) -> str:
    """Say which module `asapo.<name>` lacks and what installs it."""
    extra = _EXTRAS.get(missing.partition(".")[0])
    wanted = f"asapo[{extra}]" if extra else "asapo"
    return f"asapo.{name} needs the module {missing!r}, which is not installed: pip install '{wanted}'"
