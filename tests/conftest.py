"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from prerank.batch import RequestBatch
from prerank.schema import Schema

torch.set_num_threads(1)
# A background job starts with Ctrl-C ignored and hands that down; the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("house", deadline=None)  # a busy machine is not a failed property
settings.load_profile("house")

# Test folders are no packages, so the builders are loaded by path.
_SPEC = importlib.util.spec_from_file_location("batches", Path(__file__).with_name("batches.py"))
_BATCHES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_BATCHES)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., RequestBatch]:
    """``make_batch(schema, num_requests=..., seed=..., dtype=...)``: a random batch."""
    return _BATCHES.make_batch


@pytest.fixture(scope="session")
def schemas() -> dict[str, Schema]:
    """Small schemas by name, from item ids only (``bare``) to every owner and kind (``rich``)."""
    return _BATCHES.SCHEMAS


@pytest.fixture(params=sorted(_BATCHES.SCHEMAS))
def any_schema(request: pytest.FixtureRequest) -> Schema:
    """Each of the small schemas in turn."""
    return _BATCHES.SCHEMAS[request.param]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real public data sets; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("PRERANK_DATA", default))
    if not folder.is_dir():
        pytest.skip("real data not found; name its folder in PRERANK_DATA")
    return folder
