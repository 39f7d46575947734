"""An empty recording."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.recording import Recording


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    found = Recording(tmp_path / "data")
    yield found
    found.directory.close()
