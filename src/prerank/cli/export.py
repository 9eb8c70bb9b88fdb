"""``prerank export``: a run or a cascade to a bundle that a server answers from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prerank.cli.output import JsonOption, print_json, say, suggest

if TYPE_CHECKING:
    from prerank.serving.states import StateType

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run or of a cascade.")],
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder to make.")],
    log: Annotated[
        Path, typer.Option(metavar="LOG", help="Log with the catalogue and requests to check on.")
    ],
    part: Annotated[
        str | None, typer.Option(metavar="NAME", help="Part to check on; default: the last one.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="Of stored item states: fp32, bf16 or int8.")
    ] = "fp32",
    requests: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests to check parity on.")
    ] = 64,
    name: Annotated[str, typer.Option(metavar="TEXT", help="A name for people.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Write all that a server needs into one folder.

    Schema, vocabularies, transforms, weights, item features and states, and requests with what
    the models say of them. The folder appears only when every tier scores as its model does.

    Example: prerank export runs/cascade bundle --log logs/ml1m
    """
    from prerank.errors import InputError, did_you_mean
    from prerank.evaluation.runs import load_scorer
    from prerank.log import open_log
    from prerank.serving.export import export as make

    kinds: dict[str, StateType] = {"fp32": "fp32", "bf16": "bf16", "int8": "int8"}
    if dtype not in kinds:
        raise InputError(f"--dtype {dtype}: not known; {did_you_mean(dtype, kinds)}")
    report = make(
        load_scorer(run),
        bundle,
        open_log(log),
        dtype=kinds[dtype],
        part=part,
        num_checked=requests,
        name=name or run.name,
        say=say,
    )
    if as_json:
        print_json({"out": str(bundle), **report})
        return
    checked: dict[str, Any] = report["checked"]
    typer.echo(
        f"{bundle}: version {report['version']}, {report['items']:,} items, "
        f"{report['bytes'] / 2**20:,.1f} MiB; logits differ from the models' by "
        f"{max(checked['parity']):.1e}"
    )
    if dtype != "fp32":
        typer.echo(
            f"{dtype} states: logits differ by {checked['difference']:.1e}, first 50 places agree "
            f"to {checked['agreement']:.1%}"
        )
    suggest(("serve", bundle), ("bundle", "show", bundle))
