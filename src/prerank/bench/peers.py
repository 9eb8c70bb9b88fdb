"""Training beside the libraries a user would pick instead: samples per second at equal quality.

All read the same impressions (26 fields, Zipf(1.1) ids, planted labels) into the same shape, one
embedding per field and an MLP over all of them. What a library differs in is said on top of its
runner in ``benchmarks/peers``. First each learns, once per learning rate: validation after every
few updates, no clock. Then all are timed with the best of their rates, in processes of their own
that take turns of a few updates each, so that they share the machine's moods. How long a library
takes to a quality is the updates it needs times the time of one.

Every line is timed twice where it can be: as its users run it (``fit`` or its like, from its own
kind of data), and bare (``/step``), on tensors cut ahead: what is left when the loader's share is
taken away. ``/fused`` is a peer with torch's fused Adam, where it lets its user choose.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from prerank.bench.machine import describe_machine
from prerank.bench.peer_runs import (
    Contest,
    Runner,
    check_runners,
    make_environment,
    write_data,
)
from prerank.bench.planted import planted_impressions
from prerank.errors import InputError

__all__ = ["LINES", "RATES", "Line", "bench_peers", "learn"]

Curve = list[dict[str, Any]]
"""Points of learning: ``updates``, and ``loss``, ``ne`` and ``auc`` after them."""

Curves = dict[str, Curve]
"""A curve per learning rate."""

OURS, BARE = "prerank", "prerank/step"
WITHIN = 1.001
"""How near to a peer's best normalised entropy counts as reaching it, for both sides."""


@dataclass(frozen=True, slots=True)
class Line:
    """A library and how it is run."""

    mode: str = "fit"
    fused: bool = False


LINES: dict[str, Line] = {
    OURS: Line(),
    BARE: Line("step"),
    "deepctr": Line(),
    "deepctr/fused": Line(fused=True),
    "deepctr/step": Line("step"),
    "fuxictr": Line(),
    "fuxictr/step": Line("step"),
    "rechub": Line(),
    "rechub/fused": Line(fused=True),
    "rechub/step": Line("step"),
    "torchrec/step": Line("step"),
}

_ADAM, _ADAGRAD = (0.001, 0.003, 0.01, 0.03), (0.02, 0.05, 0.1, 0.2)
RATES: dict[str, tuple[float, ...]] = {
    "prerank": _ADAGRAD,
    "deepctr": _ADAM,
    "fuxictr": _ADAM,
    "rechub": _ADAM,
    "torchrec": _ADAGRAD,
}
"""Learning rates to choose from: of all weights (Adam), or of the tables (row-wise Adagrad)."""


def bench_peers(
    out: Path,
    *,
    runners: Path = Path("benchmarks/peers"),
    environments: Path | None = None,
    fields: int = 26,
    rows: Sequence[int] = (10_000, 200_000),
    dim: int = 16,
    hidden: Sequence[int] = (64, 32),
    batch_size: int = 2048,
    num_steps: int = 100,
    turn: int = 5,
    num_turns: int = 8,
    threads: int = 1,
    lines: Sequence[str] = tuple(LINES),
    earlier: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train ours and the peers side by side.

    Parameters
    ----------
    out : Path
        Gets the data, and the environments unless ``environments`` names a folder.
    runners : Path
        The runners' folder, ``benchmarks/peers`` of a clone.
    fields, rows, dim, hidden : int, sequence of int
        Fields, ids of each (several runs), embedding width, hidden layers of the MLP.
    batch_size, num_steps : int
        Impressions of an update, updates in which to learn (each impression is seen once).
    turn, num_turns : int
        Updates in a row and turns of each line when they are timed; learning is validated every
        ``turn`` updates.
    threads : int
        CPU threads of each.
    lines : sequence of str
        Names in ``LINES``; ours are always run.
    earlier : mapping, optional
        An earlier result, whose ``curves`` are taken where it has them; they do not depend on the
        machine.
    say : callable
        Takes a line of progress now and then.

    Returns
    -------
    dict
        ``machine``, ``shape``; ``curves``: by size, library and learning rate, validation loss,
        normalised entropy (``ne``) and AUC after so many updates; ``rates``: the best ones;
        ``best_ne`` of the planted probabilities; ``rows``: one per size and line with medians of
        CPU and wall time of an update, peak memory, and the quality that its library reaches.
        ``ratios`` of CPU time: ``train/26x200k/deepctr`` is an update of its ``fit`` over ours,
        ``.../to_ne`` the same for all updates up to the peer's best normalised entropy (within
        0.1 %), ``.../wall`` by the clock, ``.../step`` its bare update over ours, ``.../fused``
        with fused Adam; ``torchrec`` has a bare one only. ``own_step`` is our ``fit`` over our
        bare update.

    Raises
    ------
    InputError
        No runners; a line that does not exist.
    PrerankError
        An environment that cannot be made; a runner that stopped.
    """
    check_runners(runners)
    unknown = sorted(set(lines) - set(LINES))
    if unknown:
        raise InputError(
            f"bench peers: no line '{unknown[0]}'; expected some of {', '.join(LINES)}"
        )
    environments = environments or out / "envs"
    chosen = [name for name in LINES if name in {*lines, OURS, BARE}]
    libraries = list(dict.fromkeys(map(_library, chosen)))
    for peer in libraries:
        if peer != OURS:
            make_environment(peer, runners, environments, say=say)
    options = {"dim": dim, "hidden": list(hidden), "batch_size": batch_size, "seed": 0}
    options |= {"threads": threads}
    result: dict[str, Any] = {"machine": describe_machine() | {"threads": threads}}
    result |= {"shape": {**options, "fields": fields, "steps": num_steps, "turn": turn}}
    result |= {"rows": [], "ratios": {}, "rates": {}, "curves": {}, "best_ne": {}}
    for size in rows:
        name = f"{fields}x{size // 1000}k" if size >= 1000 else f"{fields}x{size}"
        data = (out / f"{name}-{num_steps}x{batch_size}").resolve()
        contest = Contest(name, runners.resolve(), environments.resolve(), data, options)
        num_valid = 20 * batch_size
        drawn = planted_impressions(num_steps * batch_size + num_valid, fields=fields, rows=size)
        valid = drawn.part(0, num_valid)
        result["best_ne"][name] = _ne(valid.probability.numpy(), valid.label.numpy())
        if not (contest.data / "log").is_dir():
            say(f"{name}: writing {len(drawn.label):,} impressions")
            write_data(contest.data, drawn, num_valid=num_valid, rows=size)
        curves: dict[str, Curves] = dict((earlier or {}).get("curves", {}).get(name, {}))
        for library in libraries:
            if library not in curves:
                curves[library] = learn(contest, library, num_steps, turn, say=say)
        rates = {
            library: min(found, key=lambda r: _best(found[r])) for library, found in curves.items()
        }
        timed = _time(contest, chosen, rates, turn, num_turns, say=say)
        best = {library: curves[library][rates[library]] for library in libraries}
        result["curves"][name], result["rates"][name] = curves, rates
        result["rows"] += [
            _row(name, line, timed[line], rates, best, batch_size, threads) for line in chosen
        ]
        result["ratios"] |= _ratios(f"train/{name}", timed, best)
    return result


def _library(line: str) -> str:
    return line.partition("/")[0]


def _best(curve: Curve) -> float:
    """Return the lowest normalised entropy of a curve."""
    return float(min(point["ne"] for point in curve))


def _start(contest: Contest, line: str, rate: str, **options: Any) -> Runner:
    library, how = _library(line), LINES[line]
    told = {"lr": float(rate), "mode": how.mode, "fused": how.fused, **options}
    peer = None if library == OURS else library
    return Runner.start(contest, line, f"run_{library}.py", peer, **told)


def learn(
    contest: Contest,
    library: str,
    num_steps: int,
    turn: int,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Curves:
    """Let a library learn at each of its rates; return what it reaches after how many updates."""
    found: Curves = {}
    # Bare and with the fused kernel: the same updates, sooner.
    runner = _start(contest, f"{library}/step", str(RATES[library][0]), fused=True)
    try:
        runner.wait()
        for rate in RATES[library]:
            runner.again(rate)
            for first in range(0, num_steps, turn):
                runner.turn(min(turn, num_steps - first), validate=True)
            updates = np.cumsum([heard["steps"] for heard in runner.turns])
            found[str(rate)] = [
                {"updates": int(n), **{key: heard[key] for key in ("loss", "ne", "auc")}}
                for n, heard in zip(updates, runner.turns, strict=True)
            ]
            best = _best(found[str(rate)])
            say(f"{contest.size}: {library} at {rate}: normalised entropy {best:.4f}")
        runner.finish()
    finally:
        runner.stop()
    return found


def _time(
    contest: Contest,
    lines: Sequence[str],
    rates: Mapping[str, str],
    turn: int,
    num_turns: int,
    *,
    say: Callable[[str], None],
) -> dict[str, Runner]:
    timed: dict[str, Runner] = {}
    with contextlib.ExitStack() as stack:
        for line in lines:
            timed[line] = _start(contest, line, rates[_library(line)])
            stack.callback(timed[line].stop)
        for runner in timed.values():
            runner.wait()
        for number in range(num_turns):
            for runner in timed.values():
                runner.turn(turn, validate=number == num_turns - 1)
            shown = {k: f"{1e3 * r.turns[-1]['cpu_s'] / turn:.0f}" for k, r in timed.items()}
            say(f"{contest.size}: turn {number + 1} of {num_turns}, CPU ms {json.dumps(shown)}")
        for runner in timed.values():
            runner.finish()
    return timed


def _per_update(runner: Runner, clock: str) -> float:
    return float(np.median([heard[clock] / heard["steps"] for heard in runner.turns]))


def _row(
    size: str,
    line: str,
    runner: Runner,
    rates: Mapping[str, str],
    best: Mapping[str, Curve],
    batch_size: int,
    threads: int,
) -> dict[str, Any]:
    library = _library(line)
    step_s, cpu_s = _per_update(runner, "wall_s"), _per_update(runner, "cpu_s")
    reached = min(best[library], key=lambda point: point["ne"])
    return {
        "size": size,
        "line": line,
        "threads": threads,
        "lr": float(rates[library]),
        "samples_per_s": batch_size / step_s,
        "samples_per_cpu_s": batch_size / cpu_s,
        "step_ms": 1e3 * step_s,
        "cpu_ms": 1e3 * cpu_s,
        "cpu_ms_of_turns": [1e3 * heard["cpu_s"] / heard["steps"] for heard in runner.turns],
        "best_ne": reached["ne"],
        "best_auc": reached["auc"],
        "best_after": reached["updates"],
        "timed_ne": runner.turns[-1]["ne"],
        "peak_mib": runner.end["peak_mib"],
        "base_mib": runner.end["base_mib"],
        **runner.ready,
    }


def _ratios(
    prefix: str, timed: Mapping[str, Runner], best: Mapping[str, Curve]
) -> dict[str, float | None]:
    ratios: dict[str, float | None] = {}
    for line, peer in timed.items():
        library, _, how = line.partition("/")
        if library == OURS:
            continue
        ours = timed[BARE if how == "step" else OURS]
        # TorchRec has a bare step only; of the others that is the detail.
        key = f"{prefix}/{library if library == 'torchrec' else line}"
        ratio = ratios[key] = _per_update(peer, "cpu_s") / _per_update(ours, "cpu_s")
        ratios[f"{key}/wall"] = _per_update(peer, "wall_s") / _per_update(ours, "wall_s")
        goal = WITHIN * _best(best[library])
        own, theirs = _updates_to(best[OURS], goal), _updates_to(best[library], goal)
        ratios[f"{key}/to_ne"] = None if not own or not theirs else ratio * theirs / own
    own_step = _per_update(timed[OURS], "cpu_s") / _per_update(timed[BARE], "cpu_s")
    return {**ratios, f"{prefix}/own_step": own_step}


def _updates_to(curve: Curve, ne: float) -> int | None:
    """Return the updates after which normalised entropy was first as low."""
    return next((point["updates"] for point in curve if point["ne"] <= ne), None)


def _ne(probability: np.ndarray[Any, Any], label: np.ndarray[Any, Any]) -> float:
    p, y = torch.from_numpy(probability).double(), torch.from_numpy(label).double()
    share = y.mean().expand_as(y)
    return float(F.binary_cross_entropy(p, y) / F.binary_cross_entropy(share, y))
