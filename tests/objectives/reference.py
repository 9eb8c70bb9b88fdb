"""Small batches made by hand, and contrastive losses written as loops from their definitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prerank.batch import Evidence, Features, Inputs, RequestBatch
from prerank.jagged import lengths_to_offsets
from prerank.schema import Label, Schema

SCHEMA = Schema(labels=(Label(name="click"),))
RANDOM, PRERANK, RANK, EXPOSED = (
    SCHEMA.source_names.index(name) for name in ("random", "prerank", "rank", "exposed")
)
NAMES = SCHEMA.source_names


def _nothing(num_rows: int) -> Features:
    return Features(torch.zeros(num_rows, 0).long(), (), torch.zeros(num_rows, 0), ())


def batch_of(requests: Sequence[Sequence[int]], **evidence: Any) -> RequestBatch:
    """Make a batch from the source codes of each request's candidates."""
    lengths = torch.tensor([len(codes) for codes in requests], dtype=torch.int64)
    source = torch.tensor([code for codes in requests for code in codes], dtype=torch.int64)
    num_requests, num = len(requests), len(source)
    inputs = Inputs(
        user=_nothing(num_requests),
        context=_nothing(num_requests),
        history={},
        items=_nothing(num),
        candidate=_nothing(num),
        offsets=lengths_to_offsets(lengths),
        request_of=torch.arange(num_requests).repeat_interleave(lengths),
        item_of=torch.arange(num),
    )
    engaged = torch.where(source == -1, 1.0, torch.where(source == -2, torch.nan, 0.0))
    stage_of = [SCHEMA.stages.index(stages[-1]) for stages in SCHEMA.sources.values()]
    shown = len(SCHEMA.stages) - 1
    stage = torch.tensor([*stage_of, shown, shown])[source]  # -1 and -2 count from the end
    values: dict[str, Any] = {
        "row": torch.arange(num_requests),
        "user": torch.zeros(num_requests, dtype=torch.int64),
        "time": torch.zeros(num_requests, dtype=torch.int64),
        "stage": stage,
        "source": source,
        "engaged": engaged,
        "targets": torch.where(source == EXPOSED, 0.0, engaged.where(source < 0, torch.nan))[
            :, None
        ],
        "item": torch.arange(num),
        "channel": torch.full((num,), -1),
        "weight": torch.ones(num),
        "propensity": torch.ones(num),
        "sample_prob": torch.ones(num),
        "scored_online": torch.ones(num, dtype=torch.bool),
    }
    return RequestBatch(inputs, Evidence(**{**values, **evidence}))


@dataclasses.dataclass
class Loops:
    """Losses by loops over requests, positives and negatives, in float64."""

    batch: RequestBatch
    logit: Tensor
    temperature: dict[str, float] = dataclasses.field(default_factory=dict)
    denominator: dict[str, float] = dataclasses.field(default_factory=dict)
    focal: float = 0.0
    log_q: bool = False
    scope: str = "request"
    with_other_positives: bool = False

    def __post_init__(self) -> None:
        evidence = self.batch.evidence
        self.weight = evidence.weight.double()
        members: list[tuple[int, int, int]] = []
        for i in range(len(evidence.source)):
            if self.weight[i] > 0:
                request = int(self.batch.inputs.request_of[i])
                members.append((i, request, int(evidence.source[i])))
        self.positives = [(i, r) for i, r, code in members if code == -1]
        self.negatives = [(i, r, code) for i, r, code in members if code >= 0]

    def requests(self) -> range:
        return range(self.batch.num_requests)

    def _term(self, p: int, n: int, code: int, beside: list[int]) -> Tensor:
        """Return what negative n adds to the sum against positive p."""
        tau = self.temperature.get(NAMES[code], 1.0)
        mean = sum(self.weight[m] for m in beside) / len(beside)
        factor = self.denominator.get(NAMES[code], 1.0) * self.weight[n] / mean
        if self.log_q:
            factor = factor / self.batch.evidence.sample_prob[n].double()
        return factor * torch.exp((self.logit[n] - self.logit[p]) / tau)

    def against(self, p: int, request: int, codes: Sequence[int]) -> Tensor | None:
        """Return the loss of a positive against negatives of some sources; None without any."""
        terms = []
        for code in codes:
            mine = [
                i
                for i, r, c in self.negatives
                if c == code and self.scope in ("batch", _of(r, request))
            ]
            terms += [self._term(p, n, code, mine) for n in mine]
        if not terms:
            return None
        if self.with_other_positives:
            terms += [
                torch.exp(self.logit[q] - self.logit[p])
                for q, r in self.positives
                if r == request and q != p
            ]
        wrong = sum(terms) / (1.0 + sum(terms))
        return wrong**self.focal * torch.log1p(sum(terms))

    def nce(self, codes: Sequence[int]) -> Tensor:
        """Return the mean over requests of means over their positives."""
        total, votes = self.logit.sum() * 0.0, 0.0
        for request in self.requests():
            mine = [p for p, r in self.positives if r == request]
            losses = [self.against(p, request, codes) for p in mine]
            kept = [(self.weight[p], x) for p, x in zip(mine, losses, strict=True) if x is not None]
            if kept:
                total = total + sum(w * x for w, x in kept) / len(kept)
                votes = votes + sum(w for w, _ in kept) / len(kept)
        return total / votes if votes else total

    def _bce(self, i: int, *, is_positive: bool) -> Tensor:
        odds = torch.exp(-self.logit[i] if is_positive else self.logit[i])
        return (odds / (1.0 + odds)) ** self.focal * torch.log1p(odds)

    def bce_grouped(self, code: int) -> Tensor:
        """Return the mean over positives plus the mean over negatives of a source."""
        nothing = self.logit.sum() * 0.0
        ones = [(self.weight[i], self._bce(i, is_positive=True)) for i, _ in self.positives]
        zeros = [
            (self.weight[i], self._bce(i, is_positive=False))
            for i, _, c in self.negatives
            if c == code
        ]
        if not zeros:
            return nothing
        return sum((_mean(pairs) for pairs in (ones, zeros) if pairs), nothing)

    def bce_mixed(self, codes: Sequence[int]) -> Tensor:
        """Return the mean over all candidates."""
        pairs = [(self.weight[i], self._bce(i, is_positive=True)) for i, _ in self.positives]
        pairs += [
            (self.weight[i], self._bce(i, is_positive=False))
            for i, _, c in self.negatives
            if c in codes
        ]
        return _mean(pairs) if pairs else self.logit.sum() * 0.0


def _of(r: int, request: int) -> str:
    return "request" if r == request else "another"


def _mean(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    return sum(w * x for w, x in pairs) / sum(w for w, _ in pairs)
