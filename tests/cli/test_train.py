from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prerank.models import HAPExpressive
from prerank.training import load_run, read_run

Cli = Callable[..., Any]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_json_of_a_run_and_of_the_same_run_again(cli: Cli, world_log: Path, out: Path) -> None:
    argv = ("train", "two_tower", "--log", world_log, "--out", out, "--set", "fit.batch_size=16")
    first = cli(*argv, "--json").json
    assert {"run", "steps", "best", "samples_per_s"} <= set(first)
    assert first["run"] == str(out)
    assert first["steps"] == 6  # 40 requests in batches of 16, twice
    assert first["best"]["metric"] == "loss"
    assert first["resumed_from"] is None
    written = (out / "model.safetensors").stat().st_mtime_ns
    again = cli(*argv, "--json").json
    assert again == {**first, "resumed_from": 6}
    assert (out / "model.safetensors").stat().st_mtime_ns == written


def test_a_run_for_people(cli: Cli, world_log: Path, out: Path) -> None:
    argv = ("train", "mlp", "--log", world_log, "--out", out, "--set", "fit.max_steps=1")
    result = cli(*argv)
    assert result.out.startswith(f"{out}: 1 updates, ")
    assert "best at update 1: loss " in result.out
    assert result.err == f"next: prerank evaluate {out} --log {world_log}\n"
    assert cli(*argv).out.startswith(f"{out}: was complete already, 1 updates, ")


def test_values_reach_model_objective_and_training(cli: Cli, world_log: Path, out: Path) -> None:
    cli(
        *("train", "two_tower", "--log", world_log, "--out", out, "--seed", "5"),
        *("--set", "fit.lr=1e-3", "--set", "fit.max_steps=1", "--set", "model.history.kind=mean"),
        *("--set", "objective.sources=[exposed, rank]"),
        *("--set", "objective.source_weights.rank=0.5"),
    )
    run = read_run(out)
    assert run.fit["lr"] == 0.001
    assert run.fit["seed"] == 5
    assert run.model.config["history"]["kind"] == "mean"
    assert run.objective.config["sources"] == ["exposed", "rank"]
    assert run.objective.config["source_weights"] == {"rank": 0.5}


def test_an_expressive_model_is_trained_over_a_finished_light_run(
    cli: Cli, world_log: Path, tmp_path: Path
) -> None:
    light, strong, out = (tmp_path / name for name in ("light", "strong", "cascade"))
    few = ("--set", "fit.max_steps=2", "--set", "fit.batch_size=16")
    assert cli("train", "hap_light", "--log", world_log, "--out", light, *few).status == 0
    argv = ("train", "hap_expressive", "--log", world_log, "--out", strong, *few)
    done = cli(*argv, "--over", light)
    assert done.status == 0, done.err
    run, trunk, model = read_run(strong), read_run(light), load_run(strong)
    assert run.trunk is not None
    assert run.trunk.weights_sha256 == trunk.weights_sha256
    assert run.seen == [trunk.parts["train"], run.parts["train"]]
    # The trunk is as it was, so a cascade passes its states on.
    assert isinstance(model, HAPExpressive)
    assert model.is_over(load_run(light))
    assert cli("cascade", light, strong, "--forward", "0.5", "--out", out).status == 0
    assert cli("evaluate", out, "--log", world_log, "--json").status == 0
    # The same command again finds the run; without --over it is another one.
    assert "was complete already" in cli(*argv, "--over", light).out
    assert "holds a run of another configuration" in cli(*argv).error


def test_what_cannot_be_built_over_a_run_is_refused(
    cli: Cli, world_log: Path, own_log: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    out, light = tmp_path / "run", tmp_path / "light"
    few = ("--set", "fit.max_steps=1")
    assert cli("train", "hap_light", "--log", world_log, "--out", light, *few).status == 0

    def refused(recipe: str, log: Path, *options: object) -> str:
        result = cli("train", recipe, "--log", log, "--out", out, *options)
        assert result.status == 2
        assert not out.exists()
        error: str = result.error
        return error

    assert "the model 'mlp' cannot be built over another one; use a recipe of hap_expressive" in (
        refused("mlp", world_log, "--over", light)
    )
    expressive = "hap_expressive"
    mlp = refused(expressive, world_log, "--over", runs["mlp"])
    assert "holds a mlp; expected a run of hap_light" in mlp
    assert "no run there" in refused(expressive, world_log, "--over", tmp_path / "none")
    both = refused(expressive, world_log, "--over", light, "--from", light)
    assert "--from and --over: give one of them" in both
    schema = json.loads((own_log / "schema.json").read_text(encoding="utf-8"))
    gone = next(f for f in schema["features"] if f["owner"] == "item" and f["name"] != "item")
    schema["features"].remove(gone)
    (own_log / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    other = refused(expressive, own_log, "--over", light)
    assert f"no item feature '{gone['name']}', which the model was trained with" in other


def test_the_seed_decides(cli: Cli, world_log: Path, tmp_path: Path) -> None:
    best = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        argv = ("--log", world_log, "--out", tmp_path / name, "--seed", seed, "--json")
        best.append(cli("train", "mlp", *argv).json["best"])
    assert best[0] == best[1] != best[2]


def test_a_copied_recipe_trains_the_same(cli: Cli, world_log: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    assert cli("recipes", "cp", "mlp", recipe).status == 0
    best = []
    for name, argument in (("a", "mlp"), ("b", recipe)):
        argv = ("--log", world_log, "--out", tmp_path / name, "--json")
        best.append(cli("train", argument, *argv).json["best"])
    assert best[0] == best[1]


def test_without_validation(cli: Cli, world_log: Path, out: Path) -> None:
    argv = ("train", "mlp", "--log", world_log, "--out", out, "--valid", "", "--part", "valid")
    assert cli(*argv, "--json").json["best"] is None
    assert read_run(out).parts["train"].part == "valid"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["two_towr"], "no recipe 'two_towr'; did you mean 'two_tower'?"),
        (["mine.yaml"], "recipe mine.yaml: no such file; recipes that come with prerank have pl"),
        (["mlp", "--set", "fit.lrr=1"], "recipe mlp: fit: unknown key 'lrr'; did you mean 'lr'?"),
        (
            ["two_tower", "--set", "model.tables.dimm=1"],
            "recipe two_tower: model: unknown key 'tables.dimm'; did you mean 'dim'?",
        ),
        (
            ["two_tower", "--set", "model.history.kind=attentoin"],
            "recipe two_tower: model: 'history.kind' is 'attentoin'; did you mean 'attention'?",
        ),
        (
            ["mlp", "--set", "objective.source=[rank]"],
            "recipe mlp: objective: unknown key 'source'; did you mean 'sources'?",
        ),
        (["mlp", "--set", "objective.sources=[rnk]"], "bce: sources: 'rnk' is not known; did you"),
        (["mlp", "--set", "fit.lr=fast"], "recipe mlp: fit: 'lr' is 'fast'; expected float, got s"),
        (["mlp", "--set", "fit.schedule=linea"], "recipe mlp: fit: 'schedule' is 'linea'; did you"),
        (["mlp", "--set", "fit.epochs=0"], "fit: epochs is 0; expected a number above 0"),
        (["mlp", "--set", "fit.lr=.nan"], "fit: lr is nan; expected a number above 0"),
        (["mlp", "--set", "lr=1"], "'lr': expected section.key, as in fit.lr; the sections are"),
        (["mlp", "--set", "ft.lr=1"], "'ft.lr': no section 'ft'; did you mean 'fit'?"),
        (["mlp", "--set", "fit.lr.max=1"], "'fit.lr.max': 'lr' is 0.01, which has no keys"),
        (["mlp", "--set", "model.name=mpl"], "model 'mpl' is not known; did you mean 'mlp'?"),
        (["mlp", "--set", "model.name=os:system"], "model 'os:system' is not known; known: din, "),
        (["mlp", "--set", "objective.name=bec"], "objective 'bec' is not known; did you mean"),
        (["mlp", "--seed", "1", "--set", "fit.seed=1"], "--seed and --set fit.seed: give one of t"),
        (["mlp", "--device", "gpu"], "--device 'gpu': Expected one of cpu, cuda, "),
        (["mlp", "--device", "meta"], "--device 'meta': "),
        (["mlp", "--device", ""], "--device '': "),
    ],
)
def test_bad_values_are_named(
    cli: Cli, world_log: Path, out: Path, argv: list[str], line: str
) -> None:
    result = cli("train", *argv, "--log", world_log, "--out", out)
    assert result.status == 2
    assert result.error.startswith(f"prerank: {line}")
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test misses")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_here(cli: Cli, world_log: Path, out: Path, device: str) -> None:
    result = cli("train", "mlp", "--log", world_log, "--out", out, "--device", device)
    assert result.status == 2
    assert result.error.startswith(f"prerank: --device '{device}': ")
    assert result.error.endswith("; expected one that is here: cpu")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "holds nothing; expected the keys what, model, objective, sampling, combine, fit"),
        (
            "- a\n- b\n",
            "holds a list; expected the keys what, model, objective, sampling, combine, fit",
        ),
        ("what: [\n", "not valid YAML: line 2: "),
        ("what: x\nfit: {lr: 1\n", "not valid YAML: line 3: "),
        ("what: x\nwhat: y\n", "not valid YAML: line 2: the key 'what' stands twice"),
        ("what: x\nmodle: {}\n", "unknown key 'modle'; did you mean 'model'?"),
        ("what: x\nmodel: {name: mlp}\n", "no 'objective'; it must be given"),
        ("what: x\nmodel: [mlp]\nobjective: {name: bce}\n", "'model' is ['mlp']; expected object"),
        ("what: x\nmodel: {}\nobjective: {name: bce}\n", "model: no 'name'; say which one"),
        (
            "what: x\nmodel: {name: mlp}\nobjective: {name: bce}\nfit: {optimizer: adma}\n",
            "fit: 'optimizer' is 'adma'; did you mean 'adam'?",
        ),
        ("what: !!python/object/apply:os.system [exit]\n", "not valid YAML: line 1: could not "),
        ("\x00", "not valid YAML: "),
    ],
)
def test_bad_recipe_files_are_named(
    cli: Cli, world_log: Path, tmp_path: Path, text: str, line: str
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    result = cli("train", recipe, "--log", world_log, "--out", tmp_path / "run")
    assert result.status == 2
    assert result.error.startswith(f"prerank: recipe {recipe}: {line}")
    assert result.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_import_path_is_no_model(cli: Cli, world_log: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "what: x\nmodel: {name: 'prerank.models.mlp:MLPPreranker'}\nobjective: {name: bce}\n"
    )
    result = cli("train", recipe, "--log", world_log, "--out", tmp_path / "run")
    assert result.status == 2
    assert result.error.startswith("prerank: model 'prerank.models.mlp:MLPPreranker' is not known")


def test_a_recipe_that_is_no_text(cli: Cli, world_log: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_bytes(b"\xff\xfe\x00what")
    result = cli("train", recipe, "--log", world_log, "--out", tmp_path / "run")
    assert result.error == f"prerank: recipe {recipe}: is no UTF-8 text; expected YAML"
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    result = cli("train", folder, "--log", world_log, "--out", tmp_path / "run")
    assert result.error == f"prerank: recipe {folder}: cannot be read: Is a directory"


def test_parts_must_be_there(cli: Cli, world_log: Path, out: Path) -> None:
    argv = ("train", "mlp", "--log", world_log, "--out", out)
    assert cli(*argv, "--part", "trian").error.endswith("no part 'trian'; did you mean 'train'?")
    assert cli(*argv, "--valid", "vald").error.endswith("no part 'vald'; did you mean 'valid'?")
    assert not out.exists()


def test_a_folder_of_another_configuration_is_left_alone(
    cli: Cli, world_log: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(runs["mlp"], tmp_path / "run"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    argv = ("train", "mlp", "--log", world_log, "--out", out)
    result = cli(*argv, "--set", "fit.lr=0.5", "--seed", "9")
    assert result.status == 2
    assert result.error == (
        f"prerank: {out}: holds a run of another configuration (fit.lr was 0.01, is 0.5; fit.seed "
        "was 0, is 9); choose another folder, or remove this one"
    )
    assert cli("train", "two_tower", *argv[2:]).status == 2
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_folder_of_something_else_is_left_alone(cli: Cli, world_log: Path, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    result = cli("train", "mlp", "--log", world_log, "--out", out)
    assert result.status == 2
    assert result.error.startswith(f"prerank: {out}: exists and is no run folder")
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_loss_that_is_no_number_fails_with_status_1(cli: Cli, world_log: Path, out: Path) -> None:
    wild = ("--set", "fit.lr=1e30", "--set", "fit.table_lr=1e30", "--set", "fit.clip_norm=null")
    argv = ("train", "mlp", "--log", world_log, "--out", out, *wild)
    for _ in range(2):
        result = cli(*argv, "--json")
        assert result.status == 1
        assert result.error.startswith("prerank: training: part 'bce/engaged' is ")
        assert "lower lr or table_lr" in result.error
    assert read_run(out).status == "running"
    assert cli("evaluate", out, "--log", world_log).error == (
        f"prerank: {out}: the run is not complete; give the same training command again to finish "
        "it"
    )


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda log: (log / "manifest.json").unlink(), "not a whole request log (manifest.json i"),
        (lambda log: (log / "schema.json").write_text("{"), "schema.json"),
        (lambda log: (log / "items.parquet").unlink(), "items.parquet: not found, expected "),
        (lambda log: _cut(next((log / "requests").iterdir())), "requests/part-00000.parquet: has"),
        (lambda log: _flip(next((log / "requests").iterdir())), "requests/part-00000.parquet: row"),
        (shutil.rmtree, "no such log; expected a folder with schema.json"),
    ],
)
def test_a_damaged_log_is_named_file_by_file(
    cli: Cli, own_log: Path, out: Path, damage: Callable[[Path], object], line: str
) -> None:
    damage(own_log)
    result = cli("train", "mlp", "--log", own_log, "--out", out)
    assert result.status == 2
    assert result.error.removeprefix(f"prerank: {own_log}")[:2] in (": ", f"/{line[0]}")
    assert line in result.error
    assert result.err.count("\n") == 1


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1000)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_a_run_without_its_weights(
    cli: Cli, world_log: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(runs["mlp"], tmp_path / "run"))
    (out / "model.safetensors").unlink()
    for argv in (
        ("train", "mlp", "--log", world_log, "--out", out),
        ("evaluate", out, "--log", world_log),
        ("score", out, "--log", world_log, "--out", tmp_path / "s.parquet"),
    ):
        result = cli(*argv)
        assert result.status == 2
        assert result.error == (
            f"prerank: {out}/model.safetensors: not found; restore it, or remove the folder and "
            "train again"
        )
    assert not (tmp_path / "s.parquet").exists()


def test_the_metrics_of_a_run_are_lines_of_json(runs: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in (runs["mlp"] / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train", "valid"}
