"""Messages between supervisor and workers: JSON lines over a socket pair.

::

    supervisor -> worker   prepare(number, path)   open and test a bundle beside the active one
                           commit(number)          go over to what was prepared
                           abort(number)           forget it
                           refresh(number)         take up items that another worker added
                           reply(number)           what came of an ask
                           drain()                 answer what is there, then end
    worker -> supervisor   ready(version)          answering from now on
                           failed(message)         cannot; the process ends
                           done(number, ok)        what came of a prepare, commit or refresh
                           ask(number, what)       a client wants a reload or has added items

Either side that goes away closes its end, which the other notices at once.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Literal

import msgspec

__all__ = ["Channel", "Message"]

_LIMIT = 1 << 20


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message; fields that its ``op`` does not need are left out.

    Parameters
    ----------
    op : str
        What kind.
    number : int
        Of what is answered.
    what : {"reload", "refresh"}
        What is asked for.
    path : str, optional
        Of a bundle, or the name of one.
    ok : bool
        Whether it worked.
    is_input : bool
        Whether it did not because of what the user gave.
    version, message : str
        Of the model; one line that says why not.
    generation, workers : int
        What is active, in how many workers.
    """

    op: Literal[
        "prepare",
        "commit",
        "abort",
        "refresh",
        "reply",
        "drain",
        "ready",
        "failed",
        "done",
        "ask",
    ]
    number: int = 0
    what: Literal["reload", "refresh", ""] = ""
    path: str | None = None
    ok: bool = True
    is_input: bool = False
    version: str = ""
    message: str = ""
    generation: int = 0
    workers: int = 0


class Channel:
    """One end; used on one event loop.

    Parameters
    ----------
    reader, writer
        Streams of the socket.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """Return a channel over one end of a socket pair, which it owns from now on."""
        return cls(*await asyncio.open_connection(sock=end, limit=_LIMIT))

    def send(self, message: Message) -> bool:
        """Send a message; say whether the other side may still get it."""
        if self._writer.is_closing():
            return False
        self._writer.write(msgspec.json.encode(message) + b"\n")
        return True

    async def receive(self) -> Message | None:
        """Return the next message; None once the other side is gone."""
        try:
            line = await self._reader.readline()
        except (ConnectionError, ValueError):
            return None
        return msgspec.json.decode(line, type=Message) if line.endswith(b"\n") else None

    async def close(self) -> None:
        """Close, after what was sent has left."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return
