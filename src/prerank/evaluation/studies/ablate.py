"""What a trained model owes to each group of features: permute it, score again, compare.

Source: Breiman, "Random Forests", 2001, section 10 (permutation importance). A group's values are
exchanged between the rows of a batch that carry them (requests, unique items, candidates), so its
distribution stays and only its bond with the rest is cut. Features of one group move together.

A model whose order hangs on a single feature is suspect: nothing known before a request predicts
alone what follows from it. :func:`suspects` names such features. It cannot prove a leak, only point
at the one feature to look at; compare with ``prerank data check``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from prerank.batch import Evidence, Features, Inputs
from prerank.errors import InputError, did_you_mean
from prerank.evaluation.collect import Kind, ModelScorer, Scores, collect
from prerank.evaluation.measures import measure
from prerank.evaluation.statistics import Difference, Estimate
from prerank.log import Columns, Log, Part
from prerank.models.base import Model
from prerank.rng import stream
from prerank.schema import Feature, Owner, Schema

__all__ = ["ABLATION_KEYS", "Ablation", "Permuted", "ablate", "feature_groups", "suspects"]

ABLATION_KEYS = ("auc/T1", "gauc/T1", "mrr/T1", "ne/T1")
_PERMUTATION = stream("evaluation/permutation")
_OWNERS: tuple[Owner, ...] = ("user", "context", "item", "candidate")
Group = tuple[str, ...]


def feature_groups(schema: Schema) -> dict[str, Group]:
    """Return the groups: every feature, every history stream, and all features of each owner.

    Members are ``OWNER.NAME`` and ``history.STREAM``.

    Examples
    --------
    >>> from prerank.schema import Label
    >>> item = Feature(name="item", owner="item", kind="categorical")
    >>> feature_groups(Schema(features=(item,), labels=(Label(name="click"),)))
    {'item.item': ('item.item',)}
    """
    carriers = {f.of for f in schema.features if f.of}
    single = [
        f"{f.owner}.{f.name}"
        for f in schema.features
        if f.owner in _OWNERS and not (f.owner == "item" and f.name in carriers)
    ]
    single += [f"history.{s}" for s in schema.streams]
    groups: dict[str, Group] = {name: (name,) for name in single}
    for owner in (*_OWNERS, "history"):
        members = tuple(name for name in single if name.startswith(f"{owner}."))
        if len(members) > 1:
            groups[f"all:{owner}"] = members
    return groups


class Permuted:
    """A model that sees a group of features of other rows.

    Parameters
    ----------
    model : Model
        Trained.
    members : tuple of str
        ``OWNER.NAME`` or ``history.STREAM``.
    seed : int
        Of the exchange.
    device : str
        Where the model computes.
    """

    kind: Kind = "logit"

    def __init__(self, model: Model, members: Group, seed: int = 0, device: str = "cpu") -> None:
        self.scorer = ModelScorer(model, device)
        self.members = members
        self.seed = seed

    @torch.inference_mode()
    def __call__(self, columns: Columns, log: Log, evidence: Evidence) -> Scores:
        """Return the logits ``[I, T]``."""
        inputs = self.scorer.transforms.batch(columns, log).inputs
        inputs = self._exchanged(inputs, int(columns.scalars["row"][0])).to(self.scorer.device)
        return np.asarray(self.scorer.model(inputs).logits.double().cpu().numpy())

    def _exchanged(self, inputs: Inputs, first_row: int) -> Inputs:
        draw = np.random.default_rng([self.seed, _PERMUTATION & 0xFFFFFFFF, first_row])
        schema = self.scorer.model.schema
        rows: dict[str, tuple[str, Features]] = {
            "user": ("user", inputs.user),
            "context": ("context", inputs.context),
            "item": ("items", inputs.items),
            "candidate": ("candidate", inputs.candidate),
        }
        changed: dict[str, Features] = {}
        for owner, (field, features) in rows.items():
            names = {m.partition(".")[2] for m in self.members if m.startswith(f"{owner}.")}
            if names:
                index = torch.from_numpy(draw.permutation(features.num_rows))
                changed[field] = _take(features, index, schema, _owner(owner), names)
        streams = {m.partition(".")[2] for m in self.members if m.startswith("history.")}
        index = torch.from_numpy(draw.permutation(inputs.num_requests))
        history = {
            name: h.select(index) if name in streams else h for name, h in inputs.history.items()
        }
        return dataclasses.replace(
            inputs,
            user=changed.get("user", inputs.user),
            context=changed.get("context", inputs.context),
            items=changed.get("items", inputs.items),
            candidate=changed.get("candidate", inputs.candidate),
            history=history,
        )


def _owner(name: str) -> Owner:
    return next(owner for owner in _OWNERS if owner == name)


def _take(
    features: Features, index: Tensor, schema: Schema, owner: Owner, names: set[str]
) -> Features:
    """Return the features with the columns of ``names`` taken from rows ``index``."""

    def chosen(of: Sequence[Feature]) -> list[int]:
        return [k for k, f in enumerate(of) if f.name in names]

    categorical, dense = features.categorical.clone(), features.dense.clone()
    columns = chosen(schema.of(owner, "categorical"))
    categorical[:, columns] = features.categorical[index][:, columns]
    of_dense = schema.of(owner, "dense")
    columns = [c + shift for c in chosen(of_dense) for shift in (0, len(of_dense))]
    dense[:, columns] = features.dense[index][:, columns]
    multi, vectors = list(features.multi), list(features.vectors)
    for k in chosen(schema.of(owner, "multi")):
        multi[k] = multi[k].select(index)
    for k in chosen(schema.of(owner, "vector")):
        vectors[k] = vectors[k][index]
    return Features(categorical, tuple(multi), dense, tuple(vectors))


class Ablation(msgspec.Struct, frozen=True, kw_only=True):
    """What each group of features is worth to a model.

    Parameters
    ----------
    whole : dict of str to Estimate
        The metrics of the model as it is.
    groups : dict of str to dict of key to Difference
        That metric minus the one with the group permuted, paired over users. About 0: the model
        does not need the group, or has it from another feature.
    suspects : tuple of str
        Single features that carry most of the order, see :func:`suspects`.
    """

    whole: dict[str, Estimate]
    groups: dict[str, dict[str, Difference]]
    suspects: tuple[str, ...]


def ablate(
    model: Model,
    part: Part,
    *,
    groups: Mapping[str, Group] | None = None,
    keys: Sequence[str] = ABLATION_KEYS,
    num_resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    device: str = "cpu",
) -> Ablation:
    """Permute each group of features in turn.

    Parameters
    ----------
    model : Model
        Trained.
    part : Part
        Requests that it was not trained on.
    groups : mapping of str to tuple of str, optional
        Default: :func:`feature_groups` of the model's schema.
    keys : sequence of str
        Metrics; those that do not exist are left out.
    num_resamples, seed, batch_size, device
        As in :func:`prerank.evaluation.evaluate`.

    Raises
    ------
    InputError
        A member that the model does not read; an untrained model.
    """
    known = feature_groups(model.schema)
    chosen = known if groups is None else groups
    for name, members in chosen.items():
        for member in members:
            if member not in known or len(known[member]) > 1:
                raise InputError(
                    f"ablate: group '{name}' names '{member}', which the model does not read; "
                    f"{did_you_mean(member, [k for k, v in known.items() if v == (k,)])}"
                )
    scorers = {name: Permuted(model, members, seed, device) for name, members in chosen.items()}
    data = collect(part, {"": ModelScorer(model, device), **scorers}, batch_size=batch_size)
    found = {name: measure(data, name, (), seed)[0] for name in ("", *chosen)}
    wanted = [key for key in keys if key in found[""]]
    whole = {key: found[""][key].estimate(num_resamples, seed) for key in wanted}
    differences = {
        name: {key: found[""][key].minus(found[name][key], num_resamples, seed) for key in wanted}
        for name in chosen
    }
    single = {name: differences[name] for name, members in chosen.items() if len(members) == 1}
    return Ablation(whole=whole, groups=differences, suspects=suspects(whole, single))


def suspects(
    whole: Mapping[str, Estimate],
    single: Mapping[str, Mapping[str, Difference]],
    *,
    key: str = "auc/T1",
    share: float = 0.7,
    least: float = 0.1,
) -> tuple[str, ...]:
    """Return single features without which most of the order is gone, the worst first.

    Parameters
    ----------
    whole, single
        As in :class:`Ablation`, for groups of one feature.
    key : str
        An AUC: 0.5 is chance.
    share, least : float
        A feature is suspect when permuting it loses at least ``share`` of what the model has
        above chance, and at least ``least`` of AUC; a weak model has nothing to lose. Both are
        our choice.
    """
    if key not in whole:
        return ()
    above = whole[key].value - 0.5
    lost = {name: found[key].value for name, found in single.items() if key in found}
    named = [name for name, value in lost.items() if value >= max(share * above, least)]
    return tuple(sorted(named, key=lambda name: -lost[name]))
