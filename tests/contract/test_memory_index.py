"""The in-memory index keeps the contract, so that tests may use it in place of a database."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from asapo.index import MetadataIndex
from asapo.testing.memory_index import MemoryIndex
from tests.contract.index_contract import IndexContract
from tests.contract.index_units import TIMEOUT_S, Clock


class TestMemoryIndex(IndexContract):
    @pytest.fixture
    def make(self, clock: Clock) -> Callable[[], MetadataIndex]:
        return lambda: MemoryIndex("bt", session_timeout_s=TIMEOUT_S, clock_s=clock)
