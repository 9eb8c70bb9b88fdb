"""The conformance checks that every objective passes, as a fixture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "objective_checks", Path(__file__).with_name("checks.py")
)
_CHECKS = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_CHECKS)


@pytest.fixture(scope="session")
def checks() -> ModuleType:
    """The module ``checks.py``: one function per property, raising AssertionError."""
    return _CHECKS
