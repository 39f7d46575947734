"""A Delivery for tests."""

import pytest

from tests.unit.broker.delivery_world import World


@pytest.fixture
def world() -> World:
    return World()
