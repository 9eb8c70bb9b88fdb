"""Items that a running engine learns of: checked, encoded, given states, written as a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from prerank.errors import did_you_mean
from prerank.log.format.vocab import UNKNOWN_ROW
from prerank.schema import ITEM_STATS_FEATURE
from prerank.serving.bundle import Bundle
from prerank.serving.catalogue import AddedItem, Catalogue, StatsRow
from prerank.serving.errors import BadRequestError, UnknownFeatureError
from prerank.serving.messages import Id, Value
from prerank.serving.segments import Content
from prerank.serving.states import pack

__all__ = ["new_content", "new_states"]


def new_content(
    catalogue: Catalogue,
    items: Sequence[tuple[Id, Mapping[str, Value]]],
    removed: Sequence[Id],
    stats: Sequence[tuple[Id, int, Mapping[str, float | None]]],
    now_ms: int,
) -> Content:
    """Check what is to be added, replaced and removed.

    Raises
    ------
    BadRequestError, UnknownFeatureError
        Values that do not fit, an id given twice, statistics or removal of an unknown item.
    """
    ids = [id_ for id_, _ in items]
    for name, given in (("items", ids), ("removed", [*removed, *ids])):
        if len(set(given)) < len(given):
            seen: set[Id] = set()
            twice = next(i for i in given if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise BadRequestError(f"{name}: item {twice!r:.60} is given twice")
    catalogue.find_past(ids)  # refuses ids of another type
    catalogue.encoder.items([features for _, features in items], "items")
    unknown = np.flatnonzero(catalogue.find_past(list(removed)) == UNKNOWN_ROW)
    if len(unknown):
        raise BadRequestError(f"removed: no item {removed[int(unknown[0])]!r:.60}")
    _check_stats(catalogue, set(ids), stats)
    return Content(
        [AddedItem(id_, dict(features), now_ms) for id_, features in items],
        list(removed),
        [StatsRow(id_, time, dict(values)) for id_, time, values in stats],
    )


def new_states(
    bundle: Bundle, catalogue: Catalogue, items: Sequence[AddedItem]
) -> list[dict[str, torch.Tensor]]:
    """Return the packed states of items, tier by tier, from the bundle's models.

    An item that training knew keeps its embedding.
    """
    if not items:
        return []
    rows = catalogue.find_past([item.id for item in items])
    own = catalogue.encoder.items([item.features for item in items], "items")
    features = [
        a.over(own, catalogue.item_rows(k, rows)).item_features
        for k, a in enumerate(bundle.assemblers)
    ]
    packed = []
    with torch.inference_mode():
        for model, k in zip(bundle.cascade.models, bundle.transforms_of, strict=True):
            packed.append(pack(model.item_state(features[k]), bundle.manifest.dtype))
    if any(name.endswith(".offsets") for tensors in packed for name in tensors):
        raise BadRequestError("items: a model with jagged item states; export the bundle anew")
    return packed


def _check_stats(
    catalogue: Catalogue,
    new: set[Id],
    stats: Sequence[tuple[Id, int, Mapping[str, float | None]]],
) -> None:
    features = catalogue.encoder.schema.features
    names = {f.name for f in features if f.of == ITEM_STATS_FEATURE}
    rows = catalogue.find_past([id_ for id_, _, _ in stats])
    for (id_, time, values), row in zip(stats, rows.tolist(), strict=True):
        if row == UNKNOWN_ROW and id_ not in new:
            raise BadRequestError(f"stats: no item {id_!r:.60}; add it first")
        if type(time) is not int or not 0 <= time < 1 << 53:
            raise BadRequestError(f"stats: item {id_!r:.60}: valid_from_ms is {time!r:.60}")
        for name, value in values.items():
            if name not in names:
                hint = did_you_mean(str(name), names)
                raise UnknownFeatureError(f"stats: no statistic '{name:.80}'; {hint}")
            fits = value is None or (
                isinstance(value, int | float) and abs(value) <= float(np.finfo(np.float32).max)
            )
            if not fits:
                raise BadRequestError(f"stats: item {id_!r:.60}: {name} is {value!r:.60}")
