"""Services shared by the tests of this folder: each test works on streams of its own."""

from collections.abc import Iterator

import pytest

from asapo import Consumer, Producer
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import consumer_of, producer_of


@pytest.fixture(scope="package")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """Run a core and two receivers."""
    with LocalServices(tmp_path_factory.mktemp("services"), receivers=2) as found:
        yield found


@pytest.fixture
def producer(services: LocalServices) -> Iterator[Producer]:
    """Return a producer."""
    with producer_of(services) as found:
        yield found


@pytest.fixture
def consumer(services: LocalServices) -> Iterator[Consumer]:
    """Return a consumer."""
    with consumer_of(services) as found:
        yield found
