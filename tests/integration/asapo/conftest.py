"""Services with an HTTP front, a native producer, and the real consumer of ASAP::O."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from asapo import Producer
from asapo.testing.launch import LocalServices
from tests.asapo_clients import RealClient, real_consumer


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    with LocalServices(tmp_path_factory.mktemp("services"), http=True) as found:
        yield found


@pytest.fixture(scope="module")
def producer(services: LocalServices) -> Iterator[Producer]:
    with Producer(services.native, beamtime="bt1", source="det") as found:
        yield found


@pytest.fixture(scope="module")
def consumer(services: LocalServices) -> Iterator[RealClient]:
    with real_consumer(services.http) as found:
        yield found


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """Return a stream of the test's own, with a name that has to be escaped."""
    return f"{request.node.originalname}/été §"
