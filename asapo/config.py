"""Configuration of the services: one TOML file, unknown keys refused, units in the names."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from asapo.errors import ConfigError
from asapo.wire import limits

T = TypeVar("T")
MIB: Final = 1024 * 1024
MAX_RECEIVERS: Final = 64
MAX_QUERY_THREADS: Final = 64
MAX_DECLARED_KEYS: Final = 2
"""Live indexes on metadata keys (R14)."""
MAX_SORTED_KEYS: Final = 6
"""Further keys by which finished streams are sorted."""
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Section `[broker]`."""

    port: int = 8400
    """Port of the native protocol on 127.0.0.1; 0 takes a free one."""
    http_port: int = 0
    """Port of the HTTP front; 0 takes a free one."""
    query_limit_s: float = 5.0
    """Longest run of one query."""
    query_rows: int = limits.MAX_ROWS
    """Most messages in one answer to a query."""
    query_threads: int = 2
    """Queries that run at once."""

    def __post_init__(self) -> None:
        for name in ("port", "http_port"):
            _within(f"broker.{name}", getattr(self, name), 0, 65535)
        _within("broker.query_limit_s", self.query_limit_s, 0.1, 3600)
        _within("broker.query_rows", self.query_rows, 1, limits.MAX_ROWS)
        _within("broker.query_threads", self.query_threads, 1, MAX_QUERY_THREADS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverConfig:
    """Section `[receiver]`: the same for every receiver on this machine."""

    count: int = 1
    """Receiver processes."""
    window_bytes: int = limits.WINDOW_BYTES
    """Most credit of one producer."""
    ingest_bytes: int = 1024 * MIB
    """Credit of all producers of one receiver together."""
    max_unit_bytes: int = limits.MAX_UNIT_BYTES
    """Longest wire unit, and so the longest message, that a receiver takes."""
    beamtime_bytes_per_s: int = 0
    """What all producers of one beamtime may have stored by one receiver in a second; 0 for no limit."""
    beamtime_bytes: int = 0
    """Most that the folder of one beamtime may hold; 0 for no limit."""
    cache_bytes: int = 64 * MIB
    """Recent payloads kept for remote readers."""
    memory_bytes: int = 256 * MIB
    """Payloads of level `memory` kept."""
    segment_bytes: int = 1024 * MIB
    """A segment is closed when it reaches this size."""
    session_timeout_s: float = limits.SESSION_TIMEOUT_S
    """A producer not heard for this long no longer holds back ordered readers."""

    def __post_init__(self) -> None:
        _within("receiver.count", self.count, 1, MAX_RECEIVERS)
        for name in ("window_bytes", "ingest_bytes", "segment_bytes"):
            _within(f"receiver.{name}", getattr(self, name), MIB, 2**62)
        _within("receiver.max_unit_bytes", self.max_unit_bytes, MIB, limits.MAX_UNIT_BYTES)
        _within("receiver.session_timeout_s", self.session_timeout_s, limits.HEARTBEAT_S, 86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of it; every key may be left out."""

    data_dir: str = "asapo-data"
    """Folder for everything: `beamline/` (payloads) and `state/` (indexes, cursors)."""
    log_level: str = "info"
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    receiver: ReceiverConfig = field(default_factory=ReceiverConfig)
    declared_keys: tuple[str, ...] = ()
    """Metadata keys with an index of their own from the start, at most two."""
    sorted_keys: tuple[str, ...] = ()
    """Further keys by which streams are sorted once they are finished, at most six."""

    def __post_init__(self) -> None:
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(
                f"log_level = {self.log_level!r}: expected one of {', '.join(LOG_LEVELS)}", key="log_level"
            )
        if not self.data_dir or "\0" in self.data_dir:
            raise ConfigError(f"data_dir = {self.data_dir!r}: expected the path of a folder", key="data_dir")
        _at_most(
            "declared_keys", self.declared_keys, MAX_DECLARED_KEYS, "each makes every insert slower; see sorted_keys"
        )
        _at_most("sorted_keys", self.sorted_keys, MAX_SORTED_KEYS, "each is stored with every other one")


def _at_most(key: str, names: tuple[str, ...], most: int, why: str) -> None:
    """Raise ConfigError when a list of keys is too long."""
    if len(names) > most:
        raise ConfigError(f"{key} names {len(names)} keys: expected at most {most}, because {why}", key=key)


def _within(key: str, value: float, least: float, most: float) -> None:
    """Raise ConfigError when a number is out of its range, or no number at all."""
    if not least <= value <= most:
        raise ConfigError(f"{key} = {value}: expected {least:.12g} to {most:.12g}", key=key)


def load_config(path: str | Path | None) -> Config:
    """Read a TOML file; None gives the defaults.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key is unknown or has the wrong type; names key, value and what was expected.
    """
    if path is None:
        return Config()
    try:
        with open(path, "rb") as file:
            return build(Config, tomllib.load(file), where=str(path))
    except OSError as exc:
        raise ConfigError(f"configuration {path}: {exc.strerror}; give an existing TOML file", key="config") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"configuration {path}: not TOML: {exc}", key="config") from exc
    except ConfigError as exc:
        if exc.message.startswith(f"{path}: "):
            raise
        raise ConfigError(f"{path}: {exc.message}", **exc.fields) from None


def build(kind: type[T], values: dict[str, Any], *, where: str) -> T:
    """Make a settings record from a map, refusing what the record does not know.

    Raises
    ------
    ConfigError
        Names the key, the value and what was expected.
    """
    hints = typing.get_type_hints(kind)
    known = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}: expected one of {', '.join(sorted(known))}", key=key)
        given[key] = _checked(hints[key], value, f"{where}: {key}")
    return kind(**given)


def _checked(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if type(value) is not dict:
            raise ConfigError(f"{where} = {value!r}: expected a table", key=where)
        return build(hint, value, where=where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        if type(value) not in (list, tuple) or not all(type(item) is str for item in value):
            raise ConfigError(f"{where} = {value!r}: expected a list of texts", key=where)
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, types.UnionType) or type(value) is not hint:
        raise ConfigError(f"{where} = {value!r}: expected {getattr(hint, '__name__', hint)}", key=where)
    if hint in (int, float) and value < 0:
        raise ConfigError(f"{where} = {value!r}: expected no negative number", key=where)
    return value
