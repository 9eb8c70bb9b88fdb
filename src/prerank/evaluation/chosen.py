"""Which metrics were asked for, and what has to be computed for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from prerank.errors import InputError

__all__ = ["Chosen"]

_MADE = {
    "T2": ("recall@1/T2", "dislike@1/T2"),
    "T3": ("recall@1/T3",),
    "T4": ("ndcg@1/T4",),
    "T5": ("recall@1/T5",),
    "U": ("recall@1/U", "regret@1/U"),
    "ranker": (
        *(f"{name}@1/ranker" for name in ("overlap", "score_lost", "gain")),
        *("kendall/ranker", "consistency/ranker", "survival@1/T1"),
    ),
    "macro": tuple(
        f"{auc}_{how}/sources" for auc in ("auc", "gauc", "request_auc") for how in ("macro", "min")
    ),
    "cold": tuple(
        f"{name}/T1:cold_{of}" for name in ("auc", "gauc", "recall@1") for of in ("item", "user")
    ),
}
"""What the groups of truths add, with one cut-off for all."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Metrics by their keys or the beginnings of keys.

    Parameters
    ----------
    prefixes : tuple of str, optional
        Whole keys, or whole parts of them: ``recall`` (or ``recall@``) is recall at every cut-off
        of every truth, ``recall@50/T1`` one number, ``auc/source:`` that of every source. None:
        all metrics.

    Examples
    --------
    >>> chosen = Chosen(("recall@50/T1", "request_auc/"))
    >>> chosen.wants("request_auc/source:rank"), chosen.wants("recall@10/T1"), chosen.cut_offs()
    (True, False, [50])
    >>> chosen.groups(("T1", "T2", "U"))
    ('T1',)
    """

    prefixes: tuple[str, ...] | None = None

    @classmethod
    def of(cls, metrics: Sequence[str] | None) -> Chosen:
        """Check and keep what was asked for."""
        if metrics is None:
            return cls()
        if isinstance(metrics, str) or not metrics or not all(metrics):
            raise InputError(
                f"evaluate: metrics is {metrics!r}; expected keys or beginnings of keys, like "
                "['recall@', 'gauc/T1']"
            )
        return cls(tuple(metrics))

    def wants(self, key: str) -> bool:
        """Return whether a metric was asked for."""
        return self.prefixes is None or any(_begins(key, p) for p in self.prefixes)

    def cut_offs(self) -> list[int]:
        """Return the cut-offs that were named."""
        found = (re.search(r"@(\d+)/", prefix) for prefix in self.prefixes or ())
        return sorted({int(match.group(1)) for match in found if match})

    def groups(self, groups: Sequence[str]) -> tuple[str, ...]:
        """Return those groups of truths that could make a metric that was asked for."""
        if self.prefixes is None:
            return tuple(groups)
        plain = [re.sub(r"@\d+", "@1", prefix) for prefix in self.prefixes]
        return tuple(
            group
            for group in groups
            if group not in _MADE or any(_begins(key, p) for key in _MADE[group] for p in plain)
        )


def _begins(key: str, prefix: str) -> bool:
    """Return whether a key is the prefix, or goes on after it with another part."""
    if not key.startswith(prefix):
        return False
    return key == prefix or prefix[-1] in "@/:" or key[len(prefix)] in "@/"
