"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def prepared_root() -> Path:
    """The folder of the prepared data sets; tests that need it are skipped where it is absent."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("CLUSTERLAB_DATA") or beside)
    if not root.is_dir():
        pytest.skip(f"no prepared data in {root}; set CLUSTERLAB_DATA")
    return root
