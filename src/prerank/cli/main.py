"""Entry point: the command tree, and errors as one line with the right exit status."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import click
import typer

from prerank import __version__
from prerank.cli import bench, data, demo, evaluate, recipes, score, train
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
app.command()(score.score)
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
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Pre-ranking for recommender cascades: request logs, models, cascades, evaluation."""


def run(argv: list[str] | None = None) -> None:
    """Run the command line and leave with 0 (fine), 1 (failed), 2 (bad usage or input)."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        status = app(args=arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        say("prerank: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # the reader of a pipe left; nothing more can be said on stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except PrerankError as error:
        if debug:
            raise
        say(f"prerank: {error}")
        sys.exit(error.exit_code)
    except MemoryError:
        say("prerank: out of memory; use fewer requests per batch or a smaller model")
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        reason = (str(error).splitlines() or [""])[0]
        say(
            f"prerank: unexpected {type(error).__name__}: {reason}; run with --debug for the "
            "traceback"
        )
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    run()
