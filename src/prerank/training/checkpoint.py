"""Checkpoints without pickle: tensors in safetensors, everything else in JSON.

A checkpoint is two files, ``step-N.safetensors`` and ``step-N.json``. The JSON is written last and
holds the digest of the tensor file and of itself, so a checkpoint cut or changed at any byte is
recognised and the one before it is used.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prerank.errors import InputError, PrerankError
from prerank.log.format.files import digest, write_json

__all__ = [
    "Checkpoint",
    "Stateful",
    "load_checkpoint",
    "load_latest",
    "load_tensors",
    "named_parameters",
    "optimiser_tensors",
    "prune_checkpoints",
    "restore_optimiser",
    "save_checkpoint",
    "save_tensors",
]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds: the step, plain values and named tensors."""

    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]


@runtime_checkable
class Stateful(Protocol):
    """An objective or combine rule that remembers something from update to update."""

    def state_tensors(self) -> Mapping[str, Tensor]:
        """Return all of it as named tensors, the same in every process."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to what :meth:`state_tensors` returned."""
        ...


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    step: int
    state: dict[str, Any]
    tensors: str
    sha256: str = ""
    version: int = 1

    @property
    def digest(self) -> str:
        """Digest of all fields but the digest itself."""
        blank = msgspec.structs.replace(self, sha256="")
        return hashlib.sha256(msgspec.json.encode(blank, order="sorted")).hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write a safetensors file whole or not at all; return its SHA-256.

    Tensors that share memory (tied weights) are each written in full.

    Raises
    ------
    PrerankError
        The disk is full or the file cannot be written; nothing is left behind.
    """
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        pointer = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if pointer in seen else value
        seen.add(pointer)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        # safetensors makes files that only their owner can read; take what the umask grants.
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(plain, temporary)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        sha256 = digest(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise PrerankError(f"{path}: cannot be written: {reason}") from None
    return sha256


def load_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file, checking its SHA-256 if given.

    Raises
    ------
    InputError
        The file is absent, cut, changed or of another format.
    """
    if not path.is_file():
        raise InputError(f"{path}: not found")
    if sha256 is not None and digest(path) != sha256:
        raise InputError(f"{path}: cut or changed since it was written (its SHA-256 differs)")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from None


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Write checkpoint ``step`` of plain values (JSON types) and named tensors.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_checkpoint(folder, 7, {"w": torch.ones(2)}, {"epoch": 1})
    >>> sorted(p.name for p in folder.iterdir())
    ['step-00000007.json', 'step-00000007.safetensors']
    >>> found, skipped = load_latest(folder)
    >>> found.step, found.state, found.tensors["w"], skipped
    (7, {'epoch': 1}, tensor([1., 1.]), [])
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, step)
    # Replacing one file of an older pair would leave a mixed pair: the JSON goes first.
    path.unlink(missing_ok=True)
    weights = path.with_suffix(".safetensors")
    record = _Record(step, dict(state), save_tensors(tensors, weights))
    try:
        write_json(msgspec.structs.replace(record, sha256=record.digest), path)
    except PrerankError:
        weights.unlink(missing_ok=True)
        raise


def load_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Read checkpoint ``step``.

    Raises
    ------
    InputError
        One of its files is absent, cut or changed.
    """
    path = _path(folder, step)
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a whole checkpoint ({error})") from None
    if record.sha256 != record.digest or record.step != step:
        raise InputError(f"{path}: changed since it was written (its SHA-256 differs)")
    tensors = load_tensors(path.with_suffix(".safetensors"), record.tensors)
    return Checkpoint(record.step, record.state, tensors)


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint (None if there is none) and why newer ones were skipped.

    Tensors without a JSON file are no checkpoint: the process was killed before it wrote that.

    A checkpoint whose state names a best step (``state["best"]["step"]``) counts as whole only
    if that checkpoint is whole too.
    """
    skipped: list[str] = []
    for step in sorted(_steps(folder, "*.json"), reverse=True):
        try:
            found = load_checkpoint(folder, step)
            best = _best_step(found.state)
            if best not in (None, step):
                load_checkpoint(folder, best)
        except InputError as error:
            skipped.append(str(error))
        else:
            return found, skipped
    return None, skipped


def prune_checkpoints(folder: Path, step: int, *, keep: int) -> None:
    """Delete all but the last ``keep`` checkpoints and the best ones that those refer to.

    ``step`` is the one just written. Those of later steps are damaged ones that a resumed run has
    skipped and will replace; they do not count.
    """
    steps = sorted(found for found in _steps(folder) if found <= step)
    kept = set(steps[-keep:])
    for recent in steps[-keep:]:
        try:
            record = msgspec.json.decode(_path(folder, recent).read_bytes(), type=_Record)
        except (msgspec.MsgspecError, UnicodeDecodeError, OSError):
            continue
        best = _best_step(record.state)
        kept |= {best} if best is not None else set()
    for old in set(steps) - kept:
        path = _path(folder, old)
        path.unlink(missing_ok=True)
        path.with_suffix(".safetensors").unlink(missing_ok=True)
    for path in folder.glob(".step-*"):
        path.unlink(missing_ok=True)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.json"


def _steps(folder: Path, pattern: str = "*") -> set[int]:
    names = [path.stem.removeprefix("step-") for path in folder.glob(f"step-{pattern}")]
    return {int(name) for name in names if name.isdigit()}


def _best_step(state: Mapping[str, Any]) -> int | None:
    best = state.get("best")
    return int(best["step"]) if isinstance(best, dict) and "step" in best else None


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, names: Mapping[int, str]
) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors, ``PARAMETER/KEY``.

    Parameters
    ----------
    optimiser : Optimizer
        All of its state must be tensors, as torch's Adam family and this library's have it.
    names : mapping of int to str
        ``id(parameter)`` to the parameter's name in the model.
    """
    return {
        f"{names[id(parameter)]}/{key}": value
        for group in optimiser.param_groups
        for parameter in group["params"]
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer, names: Mapping[int, str], tensors: Mapping[str, Tensor]
) -> None:
    """Put tensors of :func:`optimiser_tensors` back into a fresh optimiser."""
    owners = {
        names[id(parameter)]: (parameter, group)
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    optimiser.state.clear()
    for name, value in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter, group = owners[owner]
        # Adam counts steps on the CPU, unless its fused kernel reads them on the device.
        on_cpu = key == "step" and not group.get("fused")
        optimiser.state[parameter][key] = value.to("cpu" if on_cpu else parameter.device)


def named_parameters(model: nn.Module) -> dict[int, str]:
    """Return ``id(parameter) -> name`` of a model's parameters."""
    return {id(parameter): name for name, parameter in model.named_parameters()}
