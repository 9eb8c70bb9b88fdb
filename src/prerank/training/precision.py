"""Numbers of the dense part: float32, or bfloat16 matrix products where asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Literal

import torch

from prerank.batch import Inputs, Scores
from prerank.models.base import Model

__all__ = ["Precision", "bf16_support", "run_model"]

Precision = Literal["fp32", "bf16"]


def run_model(model: Model, inputs: Inputs, precision: Precision = "fp32") -> Scores:
    """Run a model's forward pass; scores come back in float32 whatever the precision inside.

    Parameters
    ----------
    model : Model
        The model, on the device of the inputs.
    inputs : Inputs
        A batch's inputs.
    precision : {"fp32", "bf16"}
        ``bf16`` runs under ``torch.autocast``: matrix products in bfloat16, weights and embedding
        tables in float32.
    """
    if precision == "fp32":
        return model(inputs)  # type: ignore[no-any-return]
    with torch.autocast(inputs.offsets.device.type, dtype=torch.bfloat16):
        scores: Scores = model(inputs)
    extra = {k: v.float() if v.is_floating_point() else v for k, v in scores.extra.items()}
    return Scores(scores.logits.float(), extra)


def bf16_support(device: str | torch.device = "cpu") -> str:
    """Say in words whether bfloat16 is fast here.

    Examples
    --------
    >>> bf16_support().startswith("bf16 on this CPU")
    True
    """
    device = torch.device(device)
    if device.type != "cpu":
        return f"bf16 on {device}"
    flags: Mapping[str, object] = {}
    with contextlib.suppress(AttributeError, RuntimeError):
        flags = torch.cpu.get_capabilities()
    found = [name for name in ("amx_bf16", "avx512_bf16") if flags.get(name)]
    if found:
        return f"bf16 on this CPU runs on {' and '.join(found)}"
    return "bf16 on this CPU has neither AMX nor avx512_bf16: expect it to be slower than fp32"
