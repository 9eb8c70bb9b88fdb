"""``prerank cascade``: put trained runs one behind the other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prerank.cli.output import JsonOption, print_json, say, suggest, track

if TYPE_CHECKING:
    from prerank.cascade import Rule, Tier
    from prerank.log import Part

__all__ = ["cascade"]


def cascade(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders, first tier first.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the cascade.")],
    forward: Annotated[
        list[str] | None,
        typer.Option(metavar="N", help="Share (0.3) or count (200) of each tier but the last."),
    ] = None,
    promise: Annotated[
        float | None,
        typer.Option(metavar="EPS", help="Loss of the ranker's favourites at most this, expected."),
    ] = None,
    mean: Annotated[
        float | None, typer.Option(metavar="N", help="Forward so many on average, where it pays.")
    ] = None,
    rule: Annotated[
        str, typer.Option(metavar="NAME", help="Of --promise, --mean: mass, threshold, gap, share.")
    ] = "mass",
    place: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of --rule gap: whose score is the mark."),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="LOG", help="Log that --promise, --mean calibrate on.")
    ] = None,
    part: Annotated[
        str, typer.Option(metavar="NAME", help="Its part, later than training.")
    ] = "valid",
    top_m: Annotated[
        int, typer.Option(metavar="M", min=1, help="Favourites of the ranker, for --promise.")
    ] = 10,
    tail: Annotated[
        str, typer.Option(metavar="HOW", help="The rest: append (light order) or drop.")
    ] = "append",
    as_json: JsonOption = False,
) -> None:
    """Make a cascade of trained runs.

    evaluate takes its folder like that of a run.

    --promise and --mean choose how much the first of two tiers forwards from its scores on a part
    of a log. --rule says by what: softmax mass, a score, the gap below the score of place --place
    (say, how many the next stage keeps), or a share.

    Example: prerank cascade runs/light runs/expressive --forward 0.3 --out runs/cascade
    """
    from prerank.cascade import Cascade, Tier
    from prerank.errors import InputError
    from prerank.evaluation.runs import TierFile, save_cascade
    from prerank.training import load_run

    if len(runs) < 2:
        raise InputError("cascade: one run is no cascade; name at least two, the first tier first")
    calibrated = [name for name, v in (("--promise", promise), ("--mean", mean)) if v is not None]
    if bool(forward) + len(calibrated) != 1:
        raise InputError("cascade: give one of --forward, --promise and --mean")
    if (place is not None) != (rule == "gap"):
        raise InputError("cascade: --rule gap and --place N, whose score is its mark: give both")
    if rule != "mass" and not calibrated:
        raise InputError(f"cascade: --rule {rule} is of --promise and --mean; give one of them")
    models = [load_run(run) for run in runs]
    amounts: list[Any] = [_amount(text) for text in forward or []]
    if calibrated:
        if len(runs) != 2:
            raise InputError(f"cascade: {calibrated[0]} is for two tiers, found {len(runs)}")
        if log is None:
            raise InputError(f"cascade: {calibrated[0]} needs --log LOG to calibrate on")
        from prerank.log import open_log

        chosen = open_log(log)[part]
        amounts = [_calibrated(Tier(models[0]), chosen, rule, promise, mean, top_m, place)]
    if len(amounts) != len(runs) - 1:
        raise InputError(
            f"cascade: {len(runs)} runs and {len(amounts)} --forward; give one for each run but "
            "the last"
        )
    tiers = [Tier(m, a, tail=tail) for m, a in zip(models, amounts, strict=False)]  # type: ignore[arg-type]
    tiers.append(Tier(models[-1]))
    made = Cascade(tiers)
    folders = [os.path.relpath(run, out) for run in runs]
    save_cascade(out, [TierFile.of(f, tier) for f, tier in zip(folders, tiers, strict=True)])
    if as_json:
        print_json({"out": str(out), "tiers": [tier.describe() for tier in tiers]})
        return
    typer.echo(f"{out}: {made.describe()}")
    suggest(("evaluate", out, *runs, "--log", log or Path("LOG")))


def _amount(text: str) -> float | int:
    from prerank.errors import InputError

    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        raise InputError(
            f"--forward {text}: expected a share like 0.3 or a count like 200"
        ) from None


def _calibrated(
    tier: Tier,
    part: Part,
    name: str,
    epsilon: float | None,
    mean: float | None,
    top_m: int,
    place: int | None,
) -> Rule:
    """Choose the level of a rule on a part and say what was found."""
    from prerank.cascade import Gap, Mass, Share, Threshold
    from prerank.errors import InputError, did_you_mean
    from prerank.evaluation.studies import budget
    from prerank.evaluation.studies import promise as promises

    families: dict[str, Rule] = {
        "mass": Mass(mass=0.5),
        "threshold": Threshold(score=0.0),
        "gap": Gap(within=0.0, place=place or 1),
        "share": Share(share=0.5),
    }
    if name not in families:
        raise InputError(f"--rule {name}: not known; {did_you_mean(name, families)}")
    needed = 0 if epsilon is None else top_m
    with track("scoring", part.num_requests) as progress:
        sample = promises.read_sample(tier, part, top_m=needed, progress=progress)
    rule: Rule
    if epsilon is not None:
        rule = promises.calibrate(families[name], sample, epsilon)
        if sample.scored_share < 1.0:
            say(
                f"the ranker scored {sample.scored_share:.0%} of the candidates; nothing is "
                "promised about the others"
            )
    else:
        assert mean is not None
        rule = budget.calibrate(families[name], sample, mean)
    found = promises.realised(rule, sample, num_resamples=100)
    say(
        f"{rule.describe()}: forwards {found.forwarded.value:.0f} of a request on average on part "
        f"'{part.name}'"
    )
    return rule
