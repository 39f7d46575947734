"""Which addresses of a receiver are tried, and in which order."""

from pathlib import Path

import pytest

from asapo.errors import WrongInput
from asapo_produce.discovery import Fixed, preferred


@pytest.fixture
def ipc(tmp_path: Path) -> str:
    (tmp_path / "socket").touch()
    return f"ipc://{tmp_path}/socket"


def test_the_same_host_is_reached_by_ipc(ipc: str) -> None:
    assert preferred(["tcp://127.0.0.1:1", ipc], same_host=True, transport="auto") == (ipc, "tcp://127.0.0.1:1")


def test_another_host_is_reached_by_tcp(ipc: str) -> None:
    assert preferred([ipc, "tcp://127.0.0.1:1"], same_host=False, transport="auto") == ("tcp://127.0.0.1:1",)


def test_an_ipc_path_of_another_container_is_not_tried() -> None:
    assert preferred(["ipc:///no/such", "tcp://127.0.0.1:1"], same_host=True, transport="auto") == (
        "tcp://127.0.0.1:1",
    )


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_transport_can_be_demanded(ipc: str, transport: str) -> None:
    (address,) = preferred([ipc, "tcp://127.0.0.1:1"], same_host=True, transport=transport)
    assert address.startswith(transport)


def test_unknown_schemes_are_left_out() -> None:
    assert preferred(["rdma://x"], same_host=True, transport="auto") == ()


def test_a_static_list_must_name_somebody() -> None:
    assert Fixed(["asapo://127.0.0.1:5"]).targets == {"tcp://127.0.0.1:5": ("tcp://127.0.0.1:5",)}
    with pytest.raises(WrongInput):
        Fixed([])
