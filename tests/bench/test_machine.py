from __future__ import annotations

import json
import os

import torch

import prerank
from prerank.bench import describe_machine


def test_a_machine_is_described_in_plain_values() -> None:
    found = describe_machine()
    assert json.loads(json.dumps(found)) == found
    assert {"cpu", "cores", "threads", "flags", "python", "torch", "numpy", "pyarrow"} <= set(found)
    assert found["cpu"]
    assert found["cores"] == os.cpu_count()
    assert found["torch"] == str(torch.__version__)
    assert found["prerank"] == prerank.__version__


def test_threads_are_those_of_now() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert describe_machine()["threads"] == 2
    finally:
        torch.set_num_threads(before)
