"""Starts a server with the engine beside this file: ``run_fake.py BUNDLE CONFIG_JSON``."""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from prerank.errors import PrerankError
from prerank.serving.server import ServerConfig, serve


def started(what: Any) -> None:
    sys.stdout.write(msgspec.json.encode(what).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    bundle, values = sys.argv[1], json.loads(sys.argv[2])
    options = values.pop("options", {})
    try:
        serve(
            bundle,
            msgspec.convert(values, ServerConfig),
            on_started=started,
            opener="fake_engine:open_fake",
            **options,
        )
    except PrerankError as error:
        sys.stderr.write(f"refused: {error}\n")
        sys.exit(error.exit_code)
