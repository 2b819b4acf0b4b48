from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def furniture() -> Path:
    """Three rendered scenes in MVImgNet's layout."""
    return Path(__file__).parents[1] / "data" / "furniture"
