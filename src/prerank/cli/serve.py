"""``prerank serve``: a bundle over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prerank.cli.output import JsonOption, SetOption, assignments, print_json, say

if TYPE_CHECKING:
    from prerank.serving.server import Started

__all__ = ["serve"]


def serve(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.")],
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Address to listen on; others need a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="P", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8080,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, max=256, help="Processes, one engine thread each.")
    ] = 1,
    token_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="File with the bearer token to ask for; - is stdin."),
    ] = None,
    waive_token: Annotated[
        bool, typer.Option("--waive-token", help="Serve other machines without a token.")
    ] = False,
    access_log: Annotated[
        str, typer.Option(metavar="FILE", help="A line per request; - is stderr, '' is none.")
    ] = "-",
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a bundle over HTTP until SIGTERM or Ctrl-C.

    The protocol is in docs/serving-http.md.

    --set changes any other setting (max_queue=64), those of the engine too (engine.dtype=fp32).

    Example: prerank serve bundle/ --workers 4
    """
    from prerank.errors import InputError, missing_extra

    try:
        from prerank.serving.server.auth import read_token
        from prerank.serving.server.workers.supervisor import serve as serve_bundle
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("starlette", "uvicorn", "h11", "anyio"):
            raise missing_extra(str(error.name), "serve") from None
        if (error.name or "").startswith("prometheus_client"):
            raise missing_extra("prometheus-client", "serve") from None
        raise
    from prerank.config import from_values
    from prerank.serving.server.config import ServerConfig

    named = {"host": host, "port": port, "workers": workers, "access_log": access_log}
    values: dict[str, object] = {**named, "engine": {}}
    for name, value in assignments(changes).items():
        if name in named or name == "engine":
            raise InputError(f"--set {name}: use its own option; engine settings are engine.NAME")
        first, _, rest = name.partition(".")
        if first == "engine" and rest:
            values["engine"][rest] = value  # type: ignore[index]
        else:
            values[name] = value
    config = from_values(ServerConfig, values, where="--set")
    if bundle.is_dir() and not (bundle / "manifest.json").is_file():
        raise InputError(
            f"{bundle}/manifest.json: not found; expected a bundle: prerank export RUN BUNDLE"
        )
    token = read_token(token_file) if token_file is not None else ""

    def started(what: Started) -> None:
        if as_json:
            import sys

            import msgspec

            print_json(msgspec.to_builtins(what))
            sys.stdout.flush()
        else:
            plural = "s" if what.workers != 1 else ""
            say(f"serving {what.model} on {what.url} ({what.workers} worker{plural})")

    serve_bundle(bundle, config, token=token, waive_token=waive_token, on_started=started)
