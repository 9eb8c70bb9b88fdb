"""The engine: raw requests to orders, in process and in the server alike.

::

    request -> candidates, context ----------------------> pairs ------------------.
            -> user, history -> digest -> cached states?                            > tiers -> order
                                  no -> request states, once for all tiers -------'
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from prerank.errors import CheckFailedError, InputError
from prerank.serving.bundle import Bundle, open_bundle
from prerank.serving.catalogue import Catalogue
from prerank.serving.grow import new_content, new_states
from prerank.serving.messages import Id, RankAnswer, RankRequest, Value
from prerank.serving.pipeline import Pipeline, View
from prerank.serving.segments import append, compact, latest, locked, read_segments
from prerank.serving.selftest import SelfTest, agreement, difference
from prerank.serving.settings import EngineConfig
from prerank.serving.stats import Stats

__all__ = ["Engine"]


class Engine:
    """Answers requests from one bundle; safe to call from several threads.

    :meth:`open` makes one.

    Parameters
    ----------
    bundle : Bundle
        Open.
    config : Engine.Config
        How to run.
    clock : callable
        Seconds, for deadlines and timings.
    """

    Config: TypeAlias = EngineConfig

    def __init__(
        self,
        bundle: Bundle,
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.bundle, self.config, self.clock = bundle, config, clock
        self.cascade = bundle.cascade
        self.pipeline = Pipeline(bundle, config, clock)
        self.dtype_reason = ""
        self._writing = threading.Lock()
        self._own = Catalogue(bundle.items, bundle.encoder, bundle.assemblers, bundle.states)
        self._view = self._look(0, self._own)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        config: EngineConfig | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        check: bool = True,
    ) -> Engine:
        """Open a bundle.

        Parameters
        ----------
        bundle : path
            Folder that ``export`` wrote.
        config : Engine.Config, optional
            How to run.
        clock : callable
            Seconds; for deadlines and timings.
        check : bool
            Compare the digest of every file.

        Raises
        ------
        InputError
            Truncated, foreign, altered or of another version: one line that names the file.
        CheckFailedError
            The self-test failed.
        """
        engine = cls(open_bundle(bundle, check=check), config or cls.Config(), clock=clock)
        found = engine.self_test()
        if not found.ok:
            raise CheckFailedError(f"{bundle}: self-test failed: {found.message}")
        engine._choose_dtype()
        engine.refresh()
        return engine

    @property
    def version(self) -> str:
        """Name of what answers: digest of the bundle, ``+N`` after N segments of items."""
        return self._view.version

    def rank(self, request: RankRequest, *, started: float | None = None) -> RankAnswer:
        """Order the candidates of a request.

        Parameters
        ----------
        request : RankRequest
            Raw values.
        started : float, optional
            When the request came, on the engine's clock; its budget counts from there.

        Raises
        ------
        BadRequestError, UnknownFeatureError, HistoryRequiredError
            See :mod:`prerank.serving.errors`.
        """
        (answer,) = self.rank_many([request], started=None if started is None else [started])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def rank_many(
        self, requests: Sequence[RankRequest], *, started: Sequence[float] | None = None
    ) -> list[RankAnswer | InputError]:
        """Order several requests with shared forwards; the error of one stands in its place."""
        now = self.clock()
        starts = [now] * len(requests) if started is None else started
        return self.pipeline.rank(requests, starts, self._view)

    def scores(self, request: RankRequest) -> list[torch.Tensor]:
        """Return the logits ``[I, T]`` that each tier gives every known candidate.

        In the order of the request's ids, unknown ones left out: for checks.
        """
        return self.pipeline.scores(request, self._view)

    def self_test(self) -> SelfTest:
        """Rank the requests stored in the bundle and compare with what is stored."""
        # Items that came later may stand in the stored requests.
        view = self._look(0, self._own) if self._view.segment else self._view
        vectors, pipeline = self.bundle.selftest, self.pipeline.aside()
        worst, shares = 0.0, []
        for vector in vectors.vectors:
            pairs = zip(pipeline.scores(vector.request, view), vector.logits, strict=True)
            worst = max([worst, *(difference(f.numpy(), expected) for f, expected in pairs)])
            (answer,) = pipeline.rank([vector.request], [self.clock()], view)
            ids = answer.ids if isinstance(answer, RankAnswer) else []
            shares.append(agreement(ids, vector.order))
        share = float(np.mean(shares)) if shares else 1.0
        loose = self.pipeline.dtype == "bf16"
        least = self.config.min_agreement if loose else vectors.agreement
        ok = share >= least and (loose or worst <= vectors.bound)
        message = (
            ""
            if ok
            else (
                f"logits differ by {worst:.2g} (bound {vectors.bound:.2g}), first places agree to "
                f"{share:.1%} (at least {least:.1%})"
            )
        )
        return SelfTest(ok, len(vectors.vectors), worst, vectors.bound, share, message)

    def stats(self) -> Stats:
        """Return the counters."""
        view = self._view
        return self.pipeline.counters.stats(
            self.pipeline.cache,
            [cost.us_per_candidate for cost in self.pipeline.costs],
            (self.pipeline.dtype, self.dtype_reason),
            (
                view.catalogue.num_items,
                len(view.catalogue.added.items),
                view.catalogue.num_removed,
            ),
        )

    def describe(self) -> dict[str, Any]:
        """Return what answers, for ``/v1/model``: version, tiers, features, limits."""
        schema, manifest = self.bundle.schema, self.bundle.manifest
        return {
            "version": self.version,
            "name": manifest.name,
            "made_ms": manifest.made_ms,
            "versions": manifest.versions,
            "tiers": manifest.tiers,
            "dtype": self.pipeline.dtype,
            "dtype_reason": self.dtype_reason,
            "states": manifest.dtype,
            "num_items": self._view.catalogue.num_items,
            "streams": list(schema.streams),
            "features": [
                {"name": f.name, "owner": f.owner, "kind": f.kind, "stream": f.stream}
                for f in schema.features
                if f.stored
            ],
            "limits": {
                name: getattr(self.config, name) for name in ("max_candidates", "max_events")
            },
            "unknown": self.config.unknown,
            "checked": manifest.checked,
        }

    def add_items(
        self,
        items: Sequence[tuple[Id, Mapping[str, Value]]] = (),
        *,
        removed: Sequence[Id] = (),
        stats: Sequence[tuple[Id, int, Mapping[str, float | None]]] = (),
    ) -> str:
        """Add, replace and remove items, on disk and here; return the new version.

        Parameters
        ----------
        items : sequence of (id, features)
            Raw item features; an id that is known gets these instead of its own.
        removed : sequence of id
            Candidates no more.
        stats : sequence of (id, valid_from_ms, values)
            Item statistics from a moment on.

        Raises
        ------
        BadRequestError, UnknownFeatureError
            Values that do not fit; nothing is written.
        """
        with self._writing, locked(self.bundle.path):
            self.refresh()
            catalogue = self._view.catalogue
            now_ms = int(time.time() * 1000)
            content = new_content(catalogue, items, removed, stats, now_ms)
            if items or removed or stats:
                states = new_states(self.bundle, catalogue, content.items)
                append(self.bundle.path, self.bundle.version, content, states)
                self.refresh()
        return self.version

    @property
    def id_type(self) -> type:
        """Type of raw item ids, ``int`` or ``str``."""
        return self._own.id_type

    def compact(self) -> tuple[int, int]:
        """Put all segments into one; return how many there were and are."""
        bundle = self.bundle
        with self._writing, locked(bundle.path):
            found = compact(bundle.path, bundle.version, len(self.cascade.tiers))
            self.refresh()
        return found

    def refresh(self) -> bool:
        """Take up segments that another process has written; say whether there were any."""
        bundle = self.bundle
        if latest(bundle.path) == self._view.segment:
            return False
        last, added = read_segments(bundle.path, bundle.version, len(self.cascade.tiers))
        catalogue = Catalogue(bundle.items, bundle.encoder, bundle.assemblers, bundle.states, added)
        self._view = self._look(last, catalogue)
        return True

    def _look(self, segment: int, catalogue: Catalogue) -> View:
        version = self.bundle.version + (f"+{segment}" if segment else "")
        reserves = self.cascade.reserves
        pinned = catalogue.find(list(reserves.pinned)) if reserves else np.zeros(0, np.int64)
        return View(version, segment, catalogue, pinned[pinned > 1])

    def _choose_dtype(self) -> None:
        """Try bf16 where it is wanted and fast; stay with fp32 where it changes the order."""
        flags: Mapping[str, Any] = torch.cpu.get_capabilities()
        fast = [name for name in ("amx_bf16", "avx512_bf16") if flags.get(name)]
        wanted = self.config.dtype
        if wanted == "fp32" or (wanted == "auto" and not fast):
            self.dtype_reason = "asked for" if wanted == "fp32" else "bf16 is not fast here"
            return
        self.pipeline.use("bf16")
        found = self.self_test()
        how = f"{', '.join(fast) or 'no fast instructions'}; agreement {found.agreement:.1%}"
        self.dtype_reason = how
        if not found.ok:
            self.pipeline.use("fp32")
            self.dtype_reason = f"bf16 changes the order: {found.message}"
        self.self_test()
