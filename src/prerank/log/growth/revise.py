"""Changing a log without ever showing a half-changed one.

A revision is built beside the log, from hard links to the files that stay, and takes its place in
one step. A crash leaves the old log; a reader that has files open goes on reading them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from prerank.errors import InputError, PrerankError
from prerank.log.format.files import MANIFEST, SCHEMA, FileEntry, digest, log_id_of, write_json
from prerank.log.log import Log, open_log
from prerank.schema import Schema

__all__ = ["Revision", "locked", "revise"]

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class Revision:
    """A copy of a log in the making.

    Parameters
    ----------
    log : Log
        The log as it is.
    folder : Path
        The copy: hard links, so a file is replaced, never written in place.
    """

    def __init__(self, log: Log, folder: Path) -> None:
        self.log = log
        self.folder = folder
        self.schema: Schema = log.schema
        self.rows: dict[str, tuple[int, int]] = {}
        self.num_requests = log.num_requests
        self.num_candidates = log.manifest.num_candidates
        self.counts: Mapping[str, int] = log.manifest.counts
        self._changed: set[str] = set()

    def replace(self, name: str) -> Path:
        """Return where to write a new or changed file, by its path inside the log."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._changed.add(name)
        return path

    def mark(self, name: str) -> None:
        """Count a file as new or changed that was written by other means."""
        self._changed.add(name)

    def seal(self) -> None:
        """Write schema and manifest of the new state, counting the revision up."""
        lineage = self.schema.lineage
        self.schema = msgspec.structs.replace(
            self.schema, lineage=msgspec.structs.replace(lineage, revision=lineage.revision + 1)
        )
        write_json(self.schema, self.replace(SCHEMA))
        files = dict(self.log.manifest.files)
        for name in sorted(self._changed):
            path = self.folder / name
            before = files.get(name)
            rows, group = (before.rows, before.row_group) if before else (0, 0)
            rows, group = self.rows.get(name, (rows, group))
            files[name] = FileEntry(path.stat().st_size, digest(path), rows, group)
        files = dict(sorted(files.items()))
        manifest = msgspec.structs.replace(
            self.log.manifest,
            content=log_id_of(files),
            num_requests=self.num_requests,
            num_candidates=self.num_candidates,
            files=files,
            counts=dict(self.counts),
        )
        write_json(manifest, self.replace(MANIFEST))


@contextlib.contextmanager
def revise(path: str | Path) -> Iterator[Revision]:
    """Yield a revision of a log; the log becomes it when the block succeeds.

    Raises
    ------
    InputError
        No whole log there, or another process is changing it.
    PrerankError
        A file cannot be written; the log stays as it was.
    """
    given, path = path, Path(os.path.realpath(path))  # a link keeps pointing where it did
    if not path.is_dir():
        open_log(given)  # says what is wrong
    with locked(path):
        for left in path.parent.glob(f".{path.name}.*.partial"):  # a killed process's
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        log = open_log(path)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            shutil.copytree(path, temporary, copy_function=_link)
            revision = Revision(log, temporary)
            yield revision
            revision.seal()
            _exchange(temporary, path)
        except OSError as error:
            raise PrerankError(f"{path}: cannot be changed: {error.strerror or error}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from changing a log meanwhile.

    Raises
    ------
    InputError
        Another process is changing it, or its folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # reading logs works everywhere
        raise InputError(f"{path}: changing a log needs file locks of a POSIX system") from None
    lock = path.with_name(f".{path.name}.lock")
    while True:
        try:
            handle = lock.open("w")
        except OSError as error:
            raise InputError(f"{path}: cannot be changed: {error.strerror or error}") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{path}: another process is changing this log; try again when it is done"
                ) from None
            if not _is_file_of(handle.fileno(), lock):
                continue  # its holder removed it between our opening and locking it
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
    return target


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step where the system can; else by two renames."""
    if _swap(os.fsencode(new), os.fsencode(old)):
        return
    aside = old.with_name(f".{old.name}.{uuid.uuid4().hex[:8]}.old")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _swap(new: bytes, old: bytes) -> bool:
    """Swap two names in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(_AT_FDCWD, new, _AT_FDCWD, old, _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))
