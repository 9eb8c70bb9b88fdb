"""The conformance checks that every objective passes, and losses written as loops."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"objective_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def checks() -> ModuleType:
    """The module ``checks.py``: one function per property, raising AssertionError."""
    return _load("checks")


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The module ``reference.py``: small batches by hand, and losses written as loops."""
    return _load("reference")
