"""The configuration file: what is refused, and that its reference tells the truth."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from asapo.config import BrokerConfig, Config, ReceiverConfig, load_config
from asapo.errors import ConfigError

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"
SECTIONS: dict[str, Any] = {"": Config, "broker": BrokerConfig, "receiver": ReceiverConfig}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "asapo.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key_may_be_left_out(tmp_path: Path) -> None:
    assert load_config(None) == load_config(written(tmp_path, "")) == Config()


def test_keys_are_read_and_the_others_keep_their_defaults(tmp_path: Path) -> None:
    config = load_config(
        written(tmp_path, 'declared_keys = ["train_id"]\n[broker]\nport = 0\n[receiver]\nsession_timeout_s = 3\n')
    )
    assert config.declared_keys == ("train_id",)
    assert config.broker == BrokerConfig(port=0)
    assert config.receiver == ReceiverConfig(session_timeout_s=3.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("port = 1", "unknown key 'port': expected one of"),
        ("[broker]\nhttp = 1", "broker: unknown key 'http': expected one of http_port, port, query_limit_s"),
        ("[broker]\nport = true", "port = True: expected int"),
        ("[broker]\nport = 1.0", "port = 1.0: expected int"),
        ("[broker]\nport = -1", "port = -1: expected no negative number"),
        ("[broker]\nhttp_port = 65536", "broker.http_port = 65536: expected 0 to 65535"),
        ("[broker]\nquery_limit_s = 0", "broker.query_limit_s = 0.0: expected 0.1 to 3600"),
        ("[broker]\nquery_rows = 10001", "broker.query_rows = 10001: expected 1 to 10000"),
        ("[broker]\nquery_threads = 0", "broker.query_threads = 0: expected 1 to 64"),
        ("[receiver]\ncount = 0", "receiver.count = 0: expected 1 to 64"),
        ("[receiver]\nsegment_bytes = 1000", "receiver.segment_bytes = 1000: expected 1048576"),
        ("[receiver]\nsession_timeout_s = 0.5", "receiver.session_timeout_s = 0.5: expected 1 to 86400"),
        ("[receiver]\nsession_timeout_s = inf", "receiver.session_timeout_s = inf"),
        ("[[receiver]]\ncount = 1", "expected a table"),
        ("declared_keys = 'train_id'", "expected a list of texts"),
        ("declared_keys = [1]", "expected a list of texts"),
        ("data_dir = ''", "data_dir = '': expected the path of a folder"),
        ("data_dir = 1", "data_dir = 1: expected str"),
        ("log_level = 'DEBUG'", "log_level = 'DEBUG': expected one of debug, info, warning, error"),
        ("a = ", "not TOML"),
    ],
)
def test_a_wrong_value_is_refused_by_file_key_and_expectation(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert expected in caught.value.message
    assert caught.value.message.count(str(path)) == 1
    assert caught.value.fields["key"]


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "asapo.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(path)
    with pytest.raises(ConfigError, match="give an existing TOML file"):
        load_config(tmp_path)


def documented() -> dict[str, dict[str, str]]:
    """Return section to key to default, as the tables of the reference say; a section's title is `[name]`."""
    found: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    for line in REFERENCE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section = {} if line.startswith("# ") else found.setdefault(line.partition("`[")[2].partition("]`")[0], {})
        elif line.startswith("| `"):
            key, default = line.split("|")[1:3]
            section[key.strip(" `")] = default.strip(" `")
    return found


@pytest.mark.parametrize("name", SECTIONS)
def test_the_reference_has_every_key_with_its_default(name: str) -> None:
    items = [item for item in dataclasses.fields(SECTIONS[name]) if item.name not in SECTIONS]
    rows = documented()[name]
    assert list(rows) == [item.name for item in items]
    for item in items:
        default = tomllib.loads(f"value = {rows[item.name]}")["value"]
        assert default == (list(item.default) if isinstance(item.default, tuple) else item.default), item.name


def test_the_example_in_the_reference_is_a_configuration(tmp_path: Path) -> None:
    example = REFERENCE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]
    assert load_config(written(tmp_path, example)) != Config()
