"""A bundle that is cut, changed, foreign or of another layout is refused, and says which file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prerank.cascade import Cascade, Maximum, Minimum, Reserves, Tier
from prerank.errors import CheckFailedError, InputError
from prerank.log import Log, Transforms
from prerank.log.format.files import digest
from prerank.models.base import Model
from prerank.serving.bundle import open_bundle
from prerank.serving.durable import describe_files
from prerank.serving.engine import Engine
from prerank.serving.export import export
from prerank.serving.messages import RankRequest


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def files(folder: Path) -> list[str]:
    """Name what belongs to the bundle; a lock stays where items were added."""
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return sorted(p.relative_to(folder).as_posix() for p in found)


def test_every_file_is_listed_and_none_is_a_pickle(bundle: Path) -> None:
    listed = json.loads((bundle / "manifest.json").read_text())["files"]
    found = set(files(bundle)) - {"manifest.json"}
    assert found == set(listed)
    assert {Path(name).suffix for name in found} == {".json", ".parquet", ".safetensors"}
    assert all(digest(bundle / name) == entry["sha256"] for name, entry in listed.items())


def test_damage_to_any_file_is_noticed(bundle: Path, tmp_path: Path) -> None:
    for k, name in enumerate(files(bundle)):
        whole = (bundle / name).read_bytes()
        middle = len(whole) // 2
        changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        damages: dict[str, bytes | None] = {"cut": whole[:-1], "empty": b"", "gone": None}
        if name != "manifest.json":
            damages["changed"] = changed
        for how, data in damages.items():
            broken = tmp_path / f"{k}{how}"
            shutil.copytree(bundle, broken)
            (broken / name).unlink()
            if data is not None:
                (broken / name).write_bytes(data)
            with pytest.raises(InputError) as caught:
                open_bundle(broken)
            assert "\n" not in str(caught.value)
            assert str(broken / name) in str(caught.value) or name == "manifest.json", how
            shutil.rmtree(broken)


def test_what_is_no_bundle_or_another_layout(copy: Path, tmp_path: Path, rich_log: Log) -> None:
    with pytest.raises(InputError, match="no bundle there"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(InputError, match="not a bundle of prerank"):
        open_bundle(rich_log.path)  # it has a manifest of its own
    manifest = json.loads((copy / "manifest.json").read_text())
    for change, says in (
        ({"format": 9}, "layout 9, made by prerank"),
        ({"kind": "model"}, "not a bundle of prerank"),
        ({"files": {}}, "does not list"),
        ({"files": {"../manifest.json": manifest["files"]["schema.json"]}}, "outside itself"),
    ):
        (copy / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(InputError, match=says):
            open_bundle(copy)


def test_weights_of_another_model_fail_the_self_test(
    copy: Path, tmp_path: Path, new_model: Callable[..., Model], transforms: Transforms
) -> None:
    """Digests made to fit: only what the models say can tell."""
    from prerank.training.checkpoint import save_tensors

    other = new_model("hap_light", transforms, seed=77)
    save_tensors(other.state_dict(), copy / "tiers" / "0" / "model.safetensors")
    manifest = json.loads((copy / "manifest.json").read_text())
    found = describe_files(copy, but=("manifest.json",))
    manifest["files"] = {n: {"bytes": e.bytes, "sha256": e.sha256} for n, e in found.items()}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    open_bundle(copy)
    with pytest.raises(CheckFailedError, match="self-test failed: logits differ"):
        Engine.open(copy)


def test_export_refuses_what_it_cannot_serve(
    cascade: Cascade,
    rich_log: Log,
    new_model: Callable[..., Model],
    transforms: Transforms,
    tmp_path: Path,
    bundle: Path,
) -> None:
    with pytest.raises(InputError, match="exists already"):
        export(cascade, bundle, rich_log)
    untrained = new_model("mlp", transforms)
    untrained.transforms = None
    with pytest.raises(InputError, match="has no transforms"):
        export(untrained, tmp_path / "a", rich_log)
    light, strong = cascade.models
    chance = Cascade([Tier(light, forward=0.5, router="random"), Tier(strong)])
    with pytest.raises(InputError, match="routes by 'random'"):
        export(chance, tmp_path / "b", rich_log)
    assert not list(tmp_path.iterdir())


def test_reserves_are_kept(
    cascade: Cascade, rich_log: Log, requests: list[RankRequest], tmp_path: Path
) -> None:
    request = max(requests, key=lambda r: len(r.candidates.ids))
    plain = cascade.tiers
    last = Cascade(plain)
    export(last, tmp_path / "plain", rich_log, num_checked=2, num_stored=1)
    order = Engine.open(tmp_path / "plain", Engine.Config(dtype="fp32")).rank(request).ids
    pinned = order[-1]
    rules = Reserves(
        quota=4,
        minimum=(Minimum(of="pinned", at_least=1),),
        maximum=(Maximum(of="channel", at_most=2, values=("near",)),),
        pinned=(pinned,),
    )
    export(Cascade(plain, rules), tmp_path / "bundle", rich_log, num_checked=2, num_stored=1)
    engine = Engine.open(tmp_path / "bundle", Engine.Config(dtype="fp32"))
    answer = engine.rank(request)
    channel = dict(zip(request.candidates.ids, request.candidates.features["channel"], strict=True))
    assert pinned in answer.ids[:4]
    assert sum(channel[i] == "near" for i in answer.ids[:4]) <= 2
    assert sorted(answer.ids) == sorted(order)


def test_commands(bundle: Path, copy: Path, tmp_path: Path) -> None:
    from prerank.cli.main import app

    run = CliRunner().invoke
    checked = run(app, ["bundle", "check", str(bundle), "--json"])
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["ok"]
    shown = json.loads(run(app, ["bundle", "show", str(bundle), "--json"]).stdout)
    assert shown["tiers"] == ["HAPLight -> 40 %", "HAPExpressive"]
    lines = tmp_path / "items.jsonl"
    lines.write_text('{"id": 5001, "features": {"category": "c1"}}\n\n')
    added = run(app, ["bundle", "add-items", str(copy), str(lines), "--json"])
    assert json.loads(added.stdout)["version"].endswith("+1")
    removed = run(app, ["bundle", "remove-items", str(copy), "5001", "10", "--json"])
    assert json.loads(removed.stdout)["removed"] == 2
    compacted = run(app, ["bundle", "compact", str(copy), "--json"])
    assert json.loads(compacted.stdout)["segments"] == 1
    lines.write_text('{"id": 5001}\n')
    wrong = run(app, ["bundle", "add-items", str(copy), str(lines)])
    assert isinstance(wrong.exception, InputError)
    assert "line 1: has id; expected id, features" in str(wrong.exception)
