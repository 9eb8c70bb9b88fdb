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


def _obd(folder: Path, rows: int = 60) -> None:
    """Open Bandit Data: one policy and campaign, 5 items; rows 6 and 7 are one request."""
    draw = random.Random(3)
    head = ["", "timestamp", "item_id", "position", "click", "propensity_score"]
    head += [f"user_feature_{k}" for k in range(4)]
    head += [f"user-item_affinity_{k}" for k in range(5)]
    lines = [",".join(head)]
    for row in range(rows):
        minute = row - (row == 7)
        time = f"2019-11-24 0{minute // 60}:{minute % 60:02d}:34.76283{row % 2}+00:00"
        time = time.replace("831", "830") if row == 7 else time
        user = [f"{(0 if row in (6, 7) else draw.randrange(3)) + 16 * k:032x}" for k in range(4)]
        user = [u[::-1] for u in user]
        shown = [str(draw.randrange(5)), str(1 + row % 3), str(int(row % 9 == 0)), "0.2"]
        affinity = [f"{draw.randrange(3)}.0" for _ in range(5)]
        lines.append(",".join([str(row), time, *shown, *user, *affinity]))
    _write(folder / "random_all_all.csv", lines)
    items = [f"{k},{k},{k / 7 - 0.3},a{k % 2},b{k % 3},c" for k in range(5)]
    head = ["", "item_id", *(f"item_feature_{k}" for k in range(4))]
    _write(folder / "random_all_item_context.csv", [",".join(head), *items])


def _taobao(folder: Path) -> None:
    """Taobao UserBehavior: 8 users, items viewed more than once, one event outside the period."""
    draw = random.Random(4)
    lines = ["1,1,100,pv,1505117799"]
    for user in range(1, 9):
        time = 1_511_600_000 + draw.randrange(10_000)
        for _ in range(60):
            time += draw.choice([5, 60, 700, 9000])
            item = draw.randrange(30)
            kind = draw.choice(["pv"] * 6 + ["cart", "fav", "buy"])
            lines.append(f"{user},{item},{100 + item % 4},{kind},{time}")
    draw.shuffle(lines)
    _write(folder / "UserBehavior.csv", lines)


def _kuairand(folder: Path) -> None:
    """KuaiRand: 6 users, the first without a row; 20 videos, quoted lists of tags."""
    draw = random.Random(5)
    log = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,"
    log += "is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,"
    log += "is_profile_enter,is_rand,tab"
    for number, name in enumerate(("standard_4_08_to_4_21", "random_4_22_to_5_08")):
        lines = [log]
        for _ in range(150):
            time = 1_650_485_801_301 + draw.randrange(20) * 60_000 * 13 + draw.randrange(99_999)
            seen = [draw.randrange(6), draw.randrange(20), 20220421, 400, time]
            marks = [draw.randrange(2) for _ in range(7)]
            rest = [draw.randrange(20_000), 10_000, 0, 0, 0, number, draw.randrange(2)]
            lines.append(",".join(map(str, [*seen, *marks, *rest])))
        _write(folder / f"log_{name}_pure.csv", lines)
    ranges = ["follow_user_num", "fans_user_num", "friend_user_num", "register_days"]
    head = ["user_id", "user_active_degree", "is_lowactive_period", "is_live_streamer"]
    head += ["is_video_author"] + [w for r in ranges for w in (r, f"{r}_range")]
    head += [f"onehot_feat{k}" for k in range(18)]
    rows = []
    for user in range(1, 6):
        counts = [w for r in range(4) for w in (str(9 * user), f'"(0,{10 + r}]"')]
        rows.append(",".join([str(user), "full_active", "0", "1", "", *counts, *["2"] * 18]))
    rows[0] = rows[0].replace(",0,1,,", ",0,1,1,")
    _write(folder / "user_features_pure.csv", [",".join(head), *rows])
    head_text = "video_id,author_id,video_type,upload_dt,upload_type,visible_status,"
    head_text += "video_duration,server_width,server_height,music_id,music_type,tag"
    videos = [
        f'{v},{v % 3},NORMAL,2022-04-01,ShortImport,1,{1000.0 + v},720,1280,{v % 5},4,"{v % 4},65"'
        for v in range(20)
    ]
    videos[4] = "4,1,AD,2022-04-01,Web,1,,720,1280,1,,"
    _write(folder / "video_features_basic_pure.csv", [head_text, *videos])


def _recflow(folder: Path) -> None:
    """RecFlow: one day, 30 requests of 12 videos that ended in every stage."""
    draw = random.Random(6)
    flags = ["realshow", "rerank_pos", "rerank_neg", "rank_pos", "rank_neg", "coarse_neg"]
    flags += ["prerank_neg"]
    head = ["request_id", "request_timestamp", "user_id", "device_id", "age", "gender", "province"]
    head += ["video_id", "author_id", "category_level_one", "category_level_two", "upload_type"]
    head += ["upload_timestamp", "duration", *flags, "rank_index", "rerank_index"]
    head += ["playing_time", "effective_view", "long_view", "like", "follow", "forward", "comment"]
    lines = [",".join(head)]
    for request in range(30):
        user = draw.randrange(5)
        who = [request, 1_705_104_000_000 + 977_000 * request, user, 10 + user, user % 3, 1, 7]
        for place, video in enumerate(draw.sample(range(40), 12)):
            what = [video, video % 5, video % 2, video % 7, 1, 1_704_000_000 + video, 9000 + video]
            flag = [int(place == k or (k == 1 and place == 0)) for k in range(7)]
            flag[6] |= int(place > 6)
            ranks = [place, place] if place < 3 else [place, 0] if place < 5 else [0, 0]
            seen = [draw.randrange(9000), draw.randrange(2), *[draw.randrange(2)] * 5]
            lines.append(",".join(map(str, [*who, *what, *flag, *ranks, *seen])))
    (folder / "all_stage").mkdir()
    _write(folder / "all_stage" / "2024-01-13.csv", lines)


SAMPLES: dict[str, Sample] = {
    "kuairand": _kuairand,
    "mind": _mind,
    "movielens": _movielens,
    "obd": _obd,
    "recflow": _recflow,
    "taobao": _taobao,
}


def _pack(folder: Path, suffix: str) -> None:
    """Replace every file of a folder by a packed one; ``whole.zip`` packs the folder as one."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if suffix == "whole.zip":
        with zipfile.ZipFile(folder / "data.zip", "w") as archive:
            archive.writestr("data/", "")
            for path in files:
                archive.write(path, f"data/{path.relative_to(folder).as_posix()}")
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
