"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("house", deadline=None)  # a busy machine is not a failed property
settings.load_profile("house")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real public data sets; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("PRERANK_DATA", default))
    if not folder.is_dir():
        pytest.skip("real data not found; name its folder in PRERANK_DATA")
    return folder
