"""Going over to another bundle in all workers, or in none.

Every worker opens and tests the bundle beside the one it serves, one after the other, so that at
most one core is busy with it. Only when all have succeeded is the generation file written, and then
all switch. A failure before that changes nothing; a worker that dies after it is replaced by one
that opens what the file names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from prerank.errors import PrerankError
from prerank.serving.server.config import ServerConfig
from prerank.serving.server.logs import event
from prerank.serving.server.workers.channel import Message
from prerank.serving.server.workers.generation import (
    Generation,
    resolve_bundle,
    write_generation,
)
from prerank.serving.server.workers.slot import Slot

__all__ = ["Changes"]

_SWITCH_S = 10.0


class Changes:
    """Brings about what concerns all workers, one thing at a time.

    Parameters
    ----------
    slots : sequence of Slot
    config : ServerConfig
    file : Path
        The generation file.
    active : Generation
        What it says.
    """

    def __init__(
        self, slots: Sequence[Slot], config: ServerConfig, file: Path, active: Generation
    ) -> None:
        self._slots, self._config, self._file = slots, config, file
        self.active = active
        self._lock = asyncio.Lock()
        self._number = 0
        self.num_done, self.num_rolled_back = 0, 0

    async def answer(self, slot: Slot, ask: Message) -> None:
        """Do what a worker asks for and tell it what came of it."""
        async with self._lock:
            if ask.what == "reload":
                reply = await self._reload(ask.path)
            else:
                reply = await self._refresh(slot)
        slot.tell(
            msgspec.structs.replace(
                reply,
                op="reply",
                number=ask.number,
                generation=self.active.number,
                workers=len(self._slots),
            )
        )

    async def _reload(self, name: str | None) -> Message:
        self._number += 1
        number = self._number
        try:
            path = resolve_bundle(Path(self.active.bundle), name)
        except PrerankError as error:
            return Message("done", ok=False, is_input=True, message=str(error))
        prepare = Message("prepare", number, path=str(path))
        found = Message("done", ok=False, message="no worker is there")
        prepared = [slot for slot in self._slots if slot.ready.is_set()]
        for slot in prepared:
            found = await slot.call(prepare, self._config.load_s)
            if not found.ok:
                break
        if found.ok:
            generation = Generation(self.active.number + 1, str(path), found.version)
            try:
                await asyncio.to_thread(write_generation, self._file, generation)
            except PrerankError as error:
                found = Message("done", ok=False, message=str(error))
        if not found.ok:
            for slot in prepared:
                slot.tell(Message("abort", number))
            self.num_rolled_back += 1
            event("reload_rolled_back", bundle=path.name, why=found.message)
            return found
        self.active = generation
        await self._commit(number)
        self.num_done += 1
        event("reloaded", bundle=path.name, model=found.version, generation=generation.number)
        return found

    async def _commit(self, number: int) -> None:
        commit = Message("commit", number)
        calls = [slot.call(commit, _SWITCH_S) for slot in self._slots]
        done = await asyncio.gather(*calls)
        for slot, one in zip(self._slots, done, strict=True):
            if not one.ok:
                # It serves the bundle before, or nothing: its successor reads the file.
                slot.replace()
        late = [slot for slot, one in zip(self._slots, done, strict=True) if not one.ok]
        if late:
            await self._wait_for(late)

    async def _wait_for(self, slots: Sequence[Slot]) -> None:
        async def again(slot: Slot) -> None:
            while not (slot.ready.is_set() and slot.generation == self.active.number):
                await asyncio.sleep(0.02)

        try:
            async with asyncio.timeout(self._config.load_s):
                await asyncio.gather(*map(again, slots))
        except TimeoutError:
            return

    async def _refresh(self, origin: Slot) -> Message:
        self._number += 1
        message = Message("refresh", self._number)
        others = [slot for slot in self._slots if slot is not origin and slot.ready.is_set()]
        calls = [slot.call(message, self._config.load_s) for slot in others]
        for slot, one in zip(others, await asyncio.gather(*calls), strict=True):
            if not one.ok:
                event("refresh_failed", worker=slot.setup.row, why=one.message)
                slot.replace()
        return Message("done")
