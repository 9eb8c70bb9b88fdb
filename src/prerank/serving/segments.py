"""Items that come after a bundle was made: append-only segments beside it.

::

    BUNDLE/segments/
      000001/  segment.json    number, bundle it belongs to, digest of the segment before, files
               content.json    added items (raw features), removed ids, statistics
               tier-0.safetensors   states of the added items, computed by the bundle's models

A segment appears by one rename, so a crash leaves all of it or nothing. Each names the digest of
the one before: a lost, foreign or altered one is noticed. Compaction writes one segment that stands
for all before it, then deletes those; whoever is interrupted in between leaves some that are
ignored.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from prerank.errors import InputError
from prerank.log.format.files import FileEntry, digest, write_json
from prerank.serving.catalogue import Added, AddedItem, StatsRow
from prerank.serving.durable import check_files, describe_files, durable_folder, read_checked
from prerank.serving.messages import Id
from prerank.training.checkpoint import load_tensors, save_tensors

__all__ = ["Content", "Segment", "append", "compact", "latest", "locked", "read_segments"]

SEGMENTS, HEADER, CONTENT = "segments", "segment.json", "content.json"
_WHAT = "segment"


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of ``segment.json``.

    Parameters
    ----------
    number : int
        1 for the first.
    first : int
        The first segment that this one stands for: its own number, less after compaction.
    bundle : str
        Version of the bundle.
    previous : str
        Digest of ``segment.json`` of the one before; empty where it stands for all.
    files : dict of str to FileEntry
    """

    number: int
    first: int
    bundle: str
    previous: str
    files: dict[str, FileEntry]


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of ``content.json``."""

    items: list[AddedItem] = []
    removed: list[Id] = []
    stats: list[StatsRow] = []


@contextmanager
def locked(bundle: Path) -> Iterator[None]:
    """Keep other writers of this bundle's segments out."""
    folder = bundle / SEGMENTS
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in folder.glob(".*.partial"):  # of a writer that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


def latest(bundle: Path) -> int:
    """Return the number of the last segment, 0 for none; reads names only."""
    return max(_numbers(bundle), default=0)


def read_segments(bundle: Path, version: str, num_tiers: int) -> tuple[int, Added]:
    """Return the last number and what all segments add up to.

    Raises
    ------
    InputError
        A segment that is missing, cut, altered or of another bundle.
    """
    while True:
        numbers = _numbers(bundle)
        try:
            return _read(bundle, version, num_tiers)
        except InputError:
            # Compaction may have taken away what was just about to be read.
            if _numbers(bundle) == numbers:
                raise


def append(
    bundle: Path, version: str, content: Content, states: Sequence[Mapping[str, Tensor]]
) -> int:
    """Write one more segment; call within :func:`locked`. Return its number."""
    number = latest(bundle) + 1
    before = _folder(bundle, number - 1) / HEADER
    previous = digest(before) if number > 1 else ""
    _write(bundle, Segment(number, number, version, previous, {}), content, states)
    return number


def compact(bundle: Path, version: str, num_tiers: int) -> tuple[int, int]:
    """Write one segment for all there are and delete those; call within :func:`locked`.

    Returns
    -------
    int, int
        How many segments there were and are.
    """
    numbers = _numbers(bundle)
    if len(numbers) < 2:
        return len(numbers), len(numbers)
    last, added = _read(bundle, version, num_tiers)
    content = Content(added.items, sorted(added.removed, key=str), _newest(added.stats))
    _write(bundle, Segment(last + 1, 1, version, "", {}), content, added.states)
    for number in numbers:
        shutil.rmtree(_folder(bundle, number), ignore_errors=True)
    return len(numbers), 1


def _numbers(bundle: Path) -> list[int]:
    names = [path.name for path in (bundle / SEGMENTS).glob("[0-9]*")]
    return sorted(int(name) for name in names if name.isdigit())


def _folder(bundle: Path, number: int) -> Path:
    return bundle / SEGMENTS / f"{number:06d}"


def _write(
    bundle: Path, header: Segment, content: Content, states: Sequence[Mapping[str, Tensor]]
) -> None:
    with durable_folder(_folder(bundle, header.number)) as folder:
        write_json(content, folder / CONTENT)
        for k, tensors in enumerate(states if content.items else ()):
            save_tensors(tensors, folder / f"tier-{k}.safetensors")
        write_json(msgspec.structs.replace(header, files=describe_files(folder)), folder / HEADER)


def _read(bundle: Path, version: str, num_tiers: int) -> tuple[int, Added]:
    numbers = _numbers(bundle)
    headers: list[Segment] = []
    for number in reversed(numbers):
        if headers and number >= headers[-1].first:
            continue  # a later one stands for it
        header = _header(bundle, number, version)
        if headers and headers[-1].first != number + 1:
            raise InputError(f"{_folder(bundle, number + 1)}: missing; restore the segment")
        headers.append(header)
        if header.first == 1:
            break
    headers.reverse()
    if headers and headers[0].first != 1:
        raise InputError(f"{_folder(bundle, headers[0].first - 1)}: missing; restore the segment")
    items: dict[Id, tuple[AddedItem, int, int]] = {}
    removed: dict[Id, None] = {}
    stats: list[StatsRow] = []
    loaded: list[list[dict[str, Tensor]]] = []
    for k, header in enumerate(headers):
        folder = _folder(bundle, header.number)
        if k and header.previous != digest(_folder(bundle, headers[k - 1].number) / HEADER):
            raise InputError(
                f"{folder / HEADER}: does not follow the segment before it; restore the segments"
            )
        check_files(folder, header.files, _WHAT)
        content = read_checked(folder / CONTENT, Content, _WHAT)
        loaded.append([])
        if content.items:
            names = [f"tier-{t}.safetensors" for t in range(num_tiers)]
            loaded[-1] = [load_tensors(folder / name) for name in names]
        for id_ in content.removed:
            removed[id_] = None
            items.pop(id_, None)
        for row, item in enumerate(content.items):
            removed.pop(item.id, None)
            items.pop(item.id, None)
            items[item.id] = (item, k, row)
        stats += content.stats
    states = _states(list(items.values()), loaded, num_tiers)
    last = headers[-1].number if headers else 0
    return last, Added([item for item, _, _ in items.values()], set(removed), stats, states)


def _header(bundle: Path, number: int, version: str) -> Segment:
    path = _folder(bundle, number) / HEADER
    header = read_checked(path, Segment, _WHAT)
    if header.bundle != version:
        raise InputError(
            f"{path}: belongs to bundle {header.bundle}, not to {version}; remove the folder "
            f"'{SEGMENTS}' or restore the bundle"
        )
    if header.number != number or CONTENT not in header.files:
        raise InputError(f"{path}: not the segment that its name says; restore it")
    return header


def _states(
    items: list[tuple[AddedItem, int, int]], loaded: list[list[dict[str, Tensor]]], num_tiers: int
) -> list[dict[str, Tensor]]:
    """Return the packed states of the items, tier by tier, in their order."""
    if not items:
        return []
    starts, total = [], 0
    for tiers in loaded:
        starts.append(total)
        total += next(iter(tiers[0].values())).shape[0] if tiers else 0
    rows = torch.tensor([starts[k] + row for _, k, row in items])
    found = []
    for tier in range(num_tiers):
        parts = [tiers[tier] for tiers in loaded if tiers]
        found.append({name: torch.cat([p[name] for p in parts])[rows] for name in parts[0]})
    return found


def _newest(stats: list[StatsRow]) -> list[StatsRow]:
    """Return one row per item and moment, the last one given."""
    return list({(row.id, row.valid_from_ms): row for row in stats}.values())
