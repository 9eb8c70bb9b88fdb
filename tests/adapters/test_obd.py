"""Open Bandit Data: rows against a plain reading of the file; what is refused."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from prerank.adapters.obd import import_obd
from prerank.errors import InputError
from prerank.log import open_log
from prerank.log.impressions import to_impressions

Sample = Callable[[Path], None]


def _rows(path: Path) -> list[dict[str, str]]:
    packing = "zstd" if path.suffix == ".zst" else None
    with pa.input_stream(str(path), compression=packing) as file:
        return list(csv.DictReader(io.StringIO(file.read().decode())))


def _check(log: Path, rows: list[dict[str, str]], items: list[dict[str, str]]) -> None:
    flat = pa.concat_tables(to_impressions(open_log(log)))
    of_item = {int(row["item_id"]): row for row in items}
    expected = []
    for row in rows:
        item = int(row["item_id"])
        context = of_item[item]
        expected.append(
            (
                item,
                int(row["position"]) - 1,
                float(row["click"]),
                pytest.approx(float(row["propensity_score"]), rel=1e-6),
                row["user_feature_2"],
                pytest.approx(float(row[f"user-item_affinity_{item}"])),
                pytest.approx(float(context["item_feature_0"]), rel=1e-6),
                context["item_feature_2"],
            )
        )
    names = ["item", "rank.exposed", "label.click", "propensity", "user.user_feature_2"]
    names += ["candidate.affinity", "item.item_feature_0", "item.item_feature_2"]
    found = list(zip(*(flat[name].to_pylist() for name in names), strict=True))
    assert found == expected  # the published files are in time order


def test_rows_of_the_sample(samples: dict[str, Sample], tmp_path: Path) -> None:
    samples["obd"](tmp_path)
    report = import_obd(tmp_path, tmp_path / "log")
    _check(
        tmp_path / "log",
        _rows(tmp_path / "random_all_all.csv"),
        _rows(tmp_path / "random_all_item_context.csv"),
    )
    assert (report.num_candidates, report.num_requests) == (60, 59)
    assert report.counts["clicks"] == 7


def test_the_published_folders_give_the_same_log(
    samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["obd"](tmp_path)
    plain = import_obd(tmp_path, tmp_path / "a")
    nested = tmp_path / "nested"
    for policy in ("random", "bts"):
        folder = nested / policy / "all"
        folder.mkdir(parents=True)
        text = (tmp_path / "random_all_all.csv").read_text()
        (folder / "all.csv").write_text(text if policy == "random" else text[:5000] + "\n")
        context = (tmp_path / "random_all_item_context.csv").read_text()
        (folder / "item_context.csv").write_text(context)
    assert import_obd(nested, tmp_path / "b") == plain
    archive = tmp_path / "obd.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(nested.rglob("*.csv")):
            packed.write(path, f"open_bandit_dataset/{path.relative_to(nested).as_posix()}")
    assert import_obd(archive, tmp_path / "c") == plain


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",0.2,", ",1.5,", r"random_all_all.csv:2: propensity_score is 1.5"),
        (",0.2,", ",0,", r"csv:2: propensity_score is 0"),
        ("+00:00,", "x,", r"csv:2: 'timestamp'"),
        ("propensity_score", "propensity", r"csv:1: no column 'propensity_score'; did you mean"),
        ("00,1,1,1,0.2", "00,9,1,1,0.2", r"csv:\d+: item_id is 9; expected one of item_context"),
    ],
)
def test_a_bad_row_is_named(
    old: str, new: str, message: str, samples: dict[str, Sample], tmp_path: Path
) -> None:
    samples["obd"](tmp_path)
    path = tmp_path / "random_all_all.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        import_obd(tmp_path, tmp_path / "log")


def test_an_unknown_policy_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="policy is 'btz'; did you mean 'bts'"):
        import_obd(tmp_path, tmp_path / "log", policy="btz")
    with pytest.raises(InputError, match="campaign is 'x'; known: all, men, women"):
        import_obd(tmp_path, tmp_path / "log", campaign="x")


@pytest.mark.parametrize("policy", ["random", "bts"])
@pytest.mark.parametrize("campaign", ["all", "men", "women"])
def test_the_real_sample(policy: str, campaign: str, real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "obd"
    if not folder.is_dir():
        pytest.skip("no Open Bandit sample in the real data")
    report = import_obd(folder, tmp_path / "log", policy=policy, campaign=campaign)
    rows = _rows(folder / f"{policy}_{campaign}_{campaign}.csv.zst")
    _check(tmp_path / "log", rows, _rows(folder / f"{policy}_{campaign}_item_context.csv.zst"))
    assert report.counts["items_without_row"] == 0
    if policy == "random":
        # Items are drawn evenly: one propensity everywhere, one over the number of items.
        assert {float(row["propensity_score"]) for row in rows} == {1 / report.num_items}
