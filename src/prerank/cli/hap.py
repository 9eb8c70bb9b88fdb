"""``prerank bench hap``: the HAP study on one data set, resumable; ``hap-page``: its page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from prerank.cli.output import JsonOption, print_json, say
from prerank.cli.tables import print_table

__all__ = ["hap", "hap_page"]

_SHOWN = ("auc/exposed", "auc/rank", "auc/prerank", "auc/random", "auc/macro")


def hap(
    data: Annotated[
        str, typer.Argument(metavar="SET", help="world, ml1m, mind, world_1 or world_2.")
    ],
    log: Annotated[Path, typer.Option(metavar="LOG", help="Its stage-labelled request log.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Trainings and results; goes on there.")],
    lines: Annotated[
        str, typer.Option(metavar="NAME,...", help="Only these lines and what they need.")
    ] = "",
    seeds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most so many seeds of any line.")
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, help="Trainings at once, one thread each.")
    ] = 1,
    minutes: Annotated[
        float | None, typer.Option(metavar="M", help="Begin no training after so long.")
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge/--no-judge", help="Whether to judge what is finished.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Run the HAP study on one data set.

    Trains every line, judges what is finished, writes results.json.

    The same command again goes on where it stopped, after Ctrl-C or SIGTERM too. world_1 and
    world_2 take the learning rates of world, from the same --out. What is asked, and what would
    count as an answer, is in benchmarks/hap/hypotheses.md.

    Example: prerank bench hap world --log logs/world --out bench/hap --workers 2
    """
    from prerank.bench.hap.answers import answers
    from prerank.bench.hap.sets import SETS
    from prerank.bench.hap.study import Study
    from prerank.errors import InputError, did_you_mean
    from prerank.log.format.files import write_json

    if data not in SETS:
        raise InputError(f"bench hap: no data set '{data}'; {did_you_mean(data, SETS)}")
    only = tuple(name for name in lines.split(",") if name)
    study = Study(SETS[data], log, out, only=only, max_seeds=seeds)
    until = None if minutes is None else time.time() + 60 * minutes
    complete = study.run(workers=workers, say=say, until=until)
    if not complete:
        say("not everything is trained; the same command goes on")
    if not judge:
        return
    if not study.finished():
        raise InputError(f"bench hap: nothing to judge in {out} yet; train first")
    result = {"complete": complete and study.is_whole, **answers(study, say)}
    path = out / data / "results.json"
    write_json(result, path)
    if as_json:
        print_json(result)
        return
    _print_lines(result)
    typer.echo(f"results: {path}")


def hap_page(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="results.json of data sets.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Markdown file to write.")],
    as_json: JsonOption = False,
) -> None:
    """Write the page of the HAP study from its results.

    Answers, tables and the recommended default are computed; unfinished results give what there is.

    Example: prerank bench hap-page bench/hap/world/results.json --out docs/hap-study.md
    """
    from prerank.bench.hap.page import page
    from prerank.errors import InputError

    text = page([_read_result(path) for path in results])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from None
    if as_json:
        print_json({"page": str(out), "sets": len(results)})
        return
    typer.echo(f"page: {out}")


def _read_result(path: Path) -> dict[str, Any]:
    import msgspec

    from prerank.errors import InputError

    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise InputError(f"{path}: is no JSON object; give what bench hap wrote") from None
    if not {"set", "lines", "differences"} <= set(found):
        raise InputError(f"{path}: holds no results of the study; give what bench hap wrote")
    return found


def _print_lines(result: dict[str, Any]) -> None:
    from rich.table import Table

    quota = result["quota"]
    recalls = [f"recall@{quota}/{truth}" for truth in ("T1", "T3", "U")]
    first = next(iter(result["lines"].values()))["metrics"]
    keys = [key for key in (*_SHOWN, *recalls) if key in first]
    table = Table(title=f"{result['set']['what']}; mean over seeds, ± sd over seeds")
    table.add_column("line")
    for key in ("lr", *keys):
        table.add_column(key, justify="right")
    for name, line in result["lines"].items():
        cells = [f"{line['lr']:g}" if "lr" in line else ""]
        for key in keys:
            m = line["metrics"][key]
            spread = f" ±{m['sd_seeds']:.4f}" if m["sd_seeds"] is not None else ""
            cells.append(f"{m['value']:.4f}{spread}")
        table.add_row(name, *cells)
    print_table(table)
