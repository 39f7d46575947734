"""Services under attack, one set for each module that attacks them."""

from collections.abc import Iterator

import pytest

from tests.faults.target import Target, attacked_services


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Give services with a producer and a consumer at work."""
    with attacked_services(tmp_path_factory.mktemp("attacked")) as found:
        yield found


@pytest.fixture
def others_are_served(target: Target) -> Iterator[None]:
    """Check behind a test that producer and consumer are served on."""
    yield
    target.check_others_are_served()
