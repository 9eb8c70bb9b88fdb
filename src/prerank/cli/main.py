"""Entry point: the command tree, and errors as one line with the right exit status."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from prerank import __version__
from prerank.cli import (
    bench,
    bundle,
    cascade,
    data,
    demo,
    diagnose,
    evaluate,
    export,
    recipes,
    score,
    serve,
    train,
)
from prerank.cli.output import say
from prerank.errors import PrerankError

__all__ = ["app", "run"]

app = typer.Typer(
    name="prerank",
    help="Pre-ranking for recommender cascades: request logs, models, cascades, evaluation.",
    epilog="Start with: prerank demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
app.command()(demo.demo)
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")
app.command()(train.train)
app.command()(evaluate.evaluate)
app.command()(diagnose.diagnose)
app.command()(cascade.cascade)
app.command()(score.score)
app.command()(export.export)
app.add_typer(bundle.app, name="bundle")
app.command()(serve.serve)
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prerank {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors; works anywhere.")
    ] = False,
) -> None:
    """Pre-ranking for recommender cascades: request logs, models, cascades, evaluation."""


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status.

    0: fine. 1: a check or a run failed. 2: bad usage or input. 130: interrupted by Ctrl-C.
    """
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # a second Ctrl-C, while the first one was being answered
        status = 130
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    # The parser knows --debug only in front of the command; people write it behind.
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        status = app(args=arguments, prog_name="prerank", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe left; nothing more can be said on stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug and not isinstance(error, typer.TyperException):
            traceback.print_exc()
        status, text = _describe(error, arguments)
        say(text)
    else:
        if status == 130:  # what the parser makes of Ctrl-C
            say("prerank: interrupted")
    return status if isinstance(status, int) else 0


def _describe(error: Exception, arguments: Sequence[str]) -> tuple[int, str]:
    """Return exit status and line of an error."""
    match error:
        case typer.TyperException():
            return error.exit_code, _usage(error, arguments)
        case PrerankError():
            return error.exit_code, f"prerank: {error}"
        case MemoryError():
            return 1, "prerank: out of memory; use fewer requests per batch or a smaller model"
        case OSError() if error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            return 1, f"prerank: {where}{error.strerror}"
    reason = (str(error).splitlines() or [""])[0]
    kind = type(error).__name__
    return 1, f"prerank: unexpected {kind}: {reason}; run with --debug for the traceback"


def _usage(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """Say in one line what was wrong with the arguments of which command."""
    text = error.format_message()
    if text.startswith("Usage:"):  # a group without its command shows its help
        return text
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "prerank"
    names = getattr(getattr(error, "param", None), "opts", ())
    if text.startswith("Invalid value"):
        name, found = _given(names, arguments)
        expected = text.partition(": ")[2].partition(",")[0]
        expected = re.sub(r"^Input should be (?=an? )", "expected ", expected)
        expected = expected.replace("Input should be", "expected a number")
        text = f"{name}{found}: {expected}"
    return f"{command}: {' '.join(text.split()).rstrip('.')}; see: {command} --help"


def _given(names: Sequence[str], arguments: Sequence[str]) -> tuple[str, str]:
    """Return an option as it was written, and its value."""
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            return name, f" {value}" if equals else f" {' '.join(arguments[at + 1 : at + 2])}"
    return " / ".join(names), ""


if __name__ == "__main__":
    run()
