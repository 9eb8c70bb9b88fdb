"""Small files in the published layouts, made by the tests, and ways to pack them."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

Sample = Callable[[Path], None]
Pack = Callable[[Path, str], None]


def _write(path: Path, lines: list[str], encoding: str = "utf-8") -> None:
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))


def _movielens(folder: Path) -> None:
    """MovieLens-1M: 9 users, 61 movies; user 9 has no row, the last movie is never rated."""
    draw = random.Random(0)
    ratings = []
    for user in range(1, 10):
        time = 978_300_000 + draw.randrange(1000)
        for item in draw.sample(range(1, 61), draw.randrange(3, 50)):
            time += draw.choice([0, 0, 1, 60])
            ratings.append(f"{user}::{item}::{draw.randrange(1, 6)}::{time}")
    draw.shuffle(ratings)
    _write(folder / "ratings.dat", ratings)
    movies = [f"{i}::Movie {i}: a \xe9tude ({1920 + i})::Comedy|Sci-Fi" for i in range(1, 62)]
    _write(folder / "movies.dat", movies, "latin-1")
    users = [f"{u}::{'FM'[u % 2]}::{25 + 10 * (u % 3)}::{u}::0{u}123" for u in range(1, 9)]
    _write(folder / "users.dat", users)


def _atomic(folder: Path) -> None:
    """RecBole's MovieLens-100K: the same in atomic files, columns in another order."""
    draw = random.Random(1)
    ratings = ["item_id:token\tuser_id:token\trating:float\ttimestamp:float"]
    for user in range(1, 8):
        rated = draw.sample(range(1, 10), 9 if user == 1 else draw.randrange(2, 10))
        for step, item in enumerate(rated):
            ratings.append(f"{item:02d}\tu{user}\t{draw.randrange(1, 6)}\t{881_250_949 + 9 * step}")
    _write(folder / "ml-100k.inter", ratings)
    movies = [f'{i:02d}\tMovie "{i}\tV\tDrama Film-Noir' for i in range(1, 10)]
    movies[2] = "03\tMovie 3\t1995\t"
    head = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    _write(folder / "ml-100k.item", [head, *movies])
    users = [f"u{u}\t{20 + u}\tF\twriter\t0{u}123" for u in range(1, 8)]
    head = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"
    _write(folder / "ml-100k.user", [head, *users])


def _mind(folder: Path) -> None:
    """MIND: 30 rows not in time order, some without history, most news without a row."""
    draw = random.Random(2)
    rows = []
    for row in range(1, 31):
        past = " ".join(f"N{draw.randrange(50)}" for _ in range(draw.randrange(5)))
        shown = [f"N{n}-{draw.randrange(2)}" for n in draw.sample(range(50), draw.randrange(2, 9))]
        hour, half = draw.randrange(1, 13), draw.choice(["AM", "PM"])
        time = f"11/{draw.randrange(9, 15)}/2019 {hour}:0{draw.randrange(10)}:46 {half}"
        rows.append(f"{row}\tU{draw.randrange(9)}\t{time}\t{past}\t{' '.join(shown)}")
    _write(folder / "behaviors.tsv", rows)
    news = [
        f'N{n}\tnews\tworld{n % 3}\tA "quoted title | of {n}\tText.\thttps://a/{n}\t[]\t[]'
        for n in range(20)
    ]
    news[3] = "N3\tsports\t\t\t\t\t\t"
    _write(folder / "news.tsv", news)


SAMPLES: dict[str, Sample] = {"movielens": _movielens, "mind": _mind}


def _pack(folder: Path, suffix: str) -> None:
    """Replace every file of a folder by a packed one; ``whole.zip`` packs the folder as one."""
    files = sorted(folder.iterdir())
    if suffix == "whole.zip":
        with zipfile.ZipFile(folder / "data.zip", "w") as archive:
            archive.writestr("data/", "")
            for path in files:
                archive.write(path, f"data/{path.name}")
    for path in files:
        packed = path.with_name(path.name + suffix)
        if suffix == ".zip":
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(path, path.name)
        elif suffix in (".gz", ".zst"):
            kind = {".gz": "gzip", ".zst": "zstd"}[suffix]
            with pa.output_stream(str(packed), compression=kind) as stream:
                stream.write(path.read_bytes())
        if suffix:
            path.unlink()


@pytest.fixture(scope="session")
def samples() -> dict[str, Sample]:
    """Adapter -> function that writes its smallest honest input into a folder."""
    return SAMPLES


@pytest.fixture(scope="session")
def write_atomic() -> Sample:
    """Write MovieLens in RecBole's layout."""
    return _atomic


@pytest.fixture(scope="session")
def pack() -> Pack:
    """Pack the files of a folder."""
    return _pack
