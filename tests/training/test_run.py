from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prerank.errors import InputError
from prerank.training import FitConfig, fit, load_run, read_run
from prerank.training.checkpoint import digest


@pytest.fixture
def run(planted: Any, new_model: Callable[..., Any], bce: Any, tmp_path: Path) -> Any:
    model = new_model()
    config = FitConfig(epochs=1, batch_size=64)
    out = tmp_path / "run"
    fit(
        model,
        planted.log["train"],
        bce,
        valid=planted.log["valid"],
        config=config,
        out=out,
        progress=False,
    )
    return model, out


def _logits(model: Any, part: Any) -> torch.Tensor:
    with torch.no_grad():
        batches = part.batches(model.transforms, 64)
        return torch.cat([model(batch.inputs).logits for batch in batches])


def test_a_loaded_run_scores_as_the_model_did(planted: Any, run: Any) -> None:
    model, out = run
    loaded = load_run(out)
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    part = planted.log["valid"]
    assert torch.equal(_logits(loaded, part), _logits(model, part))


def test_run_json_says_what_was_trained_on_what(planted: Any, run: Any) -> None:
    _, out = run
    record = read_run(out)
    assert (record.status, record.model.name, record.objective.name) == (
        "complete",
        "two_tower",
        "bce",
    )
    rows = record.parts["train"]
    assert (rows.log_id, rows.part, rows.rows) == (
        planted.log.schema.lineage.log_id,
        "train",
        [(0, 210)],
    )
    assert record.parts["valid"].rows == [(210, 300)]
    assert record.fit["batch_size"] == 64
    assert record.report["best"]["metric"] == "gauc"
    assert {"prerank", "torch", "python"} <= record.versions.keys()
    assert str(out) not in (out / "run.json").read_text()


def test_no_pickle_anywhere(run: Any) -> None:
    _, out = run
    suffixes = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors", ".parquet"}
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "run.json", "transforms.json", "schema.json"]
)
def test_a_cut_file_is_refused(run: Any, name: str) -> None:
    _, out = run
    path = out / name
    whole = path.read_bytes()
    cuts = random.Random(0).sample(range(len(whole)), 25)
    for cut in [0, 1, len(whole) - 1, *cuts]:
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
            load_run(out)
        assert "\n" not in str(caught.value)


def test_weights_of_another_run_are_refused(run: Any) -> None:
    _, out = run
    path = out / "model.safetensors"
    foreign = {"something": torch.zeros(3)}
    save_file(foreign, path)
    with pytest.raises(InputError, match="SHA-256 differs"):
        load_run(out)
    text = (out / "run.json").read_text()
    text = text.replace(read_run(out).weights_sha256, digest(path))
    (out / "run.json").write_text(text)
    with pytest.raises(InputError, match="does not fit the model 'two_tower'"):
        load_run(out)


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run there \(run\.json is missing\)"):
        load_run(tmp_path)


def test_an_unfinished_run_is_refused(run: Any) -> None:
    _, out = run
    text = (out / "run.json").read_text().replace('"complete"', '"running"')
    (out / "run.json").write_text(text)
    with pytest.raises(InputError, match="not complete"):
        load_run(out)


def test_a_folder_of_something_else_is_left_alone(
    planted: Any, new_model: Callable[..., Any], bce: Any, tmp_path: Path
) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(InputError, match="is no run folder"):
        fit(new_model(), planted.log["train"], bce, out=tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["letters.txt"]


def test_an_unknown_model_name_is_refused_or_filled_by_hand(
    planted: Any, new_model: Callable[..., Any], run: Any
) -> None:
    model, out = run
    text = (out / "run.json").read_text().replace('"two_tower"', '"two_towr"')
    (out / "run.json").write_text(text)
    with pytest.raises(InputError, match="did you mean 'two_tower'"):
        load_run(out)
    filled = load_run(out, new_model(seed=5))
    part = planted.log["valid"]
    assert torch.equal(_logits(filled, part), _logits(model, part))


def test_a_run_stopped_before_its_transforms_starts_over(
    planted: Any,
    new_model: Callable[..., Any],
    bce: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prerank.log import Transforms

    def dies(self: Any, folder: Any) -> None:
        (folder / "transforms.json").write_text("{")
        raise RuntimeError("power cut")

    config = FitConfig(max_steps=2, batch_size=64)
    with monkeypatch.context() as patched:
        patched.setattr(Transforms, "save", dies)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(
                new_model(),
                planted.log["train"],
                bce,
                config=config,
                out=tmp_path / "r",
                progress=False,
            )
    assert read_run(tmp_path / "r").status == "starting"
    fit(new_model(), planted.log["train"], bce, config=config, out=tmp_path / "r", progress=False)
    assert load_run(tmp_path / "r").transforms is not None
