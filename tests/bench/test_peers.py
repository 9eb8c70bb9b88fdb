"""The harness of the comparison with peers: what it hands out, hears and concludes.

The peers themselves are run by ``make bench-peers``, in environments of their own.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from prerank.bench.peer_runs import make_environment, write_data
from prerank.bench.peers import bench_peers
from prerank.bench.planted import planted_impressions
from prerank.errors import InputError, PrerankError
from prerank.log import Transforms, open_log

RUNNERS = Path(__file__).parents[2] / "benchmarks" / "peers"
TUNED = {"26x50": {"prerank": "0.05", "deepctr": "0.003"}}

# Ours takes 1 ms an update and its entropy is 1 - updates / 10; the peer 8 ms and half as good.
FAKE = """
import json, sys
def tell(**message): print(json.dumps(message), flush=True)
options = json.loads(sys.argv[2])
print("noise of an import")
tell(ready={"torch": "0"}, told=options)
done = 0
for line in sys.stdin:
    told = json.loads(line)
    if "lr" in told:
        options["lr"], done = told["lr"], 0
        tell(ready={"torch": "0"}, told=options)
        continue
    steps = told["steps"]
    if not steps:
        tell(peak_mib=9.0, base_mib=1.0)
        break
    done += steps
    ne = 1 - SLOPE * done * (1 if options["lr"] == BEST else 0.5)
    metrics = {"loss": ne, "ne": ne, "auc": 0.5} if told["validate"] else {}
    tell(steps=steps, cpu_s=COST * steps, wall_s=2 * COST * steps, **metrics)
"""


def _fakes(folder: Path) -> tuple[Path, Path]:
    """Make runners that only say so, and the peer's environment."""
    runners, environments = folder / "runners", folder / "envs"
    (environments / "deepctr" / "bin").mkdir(parents=True)
    (environments / "deepctr" / "bin" / "python").symlink_to(sys.executable)
    runners.mkdir()
    (runners / "protocol.py").touch()
    (runners / "deepctr.txt").write_text("deepctr-torch\n")
    (environments / "deepctr" / ".ready").write_text("deepctr-torch\n")
    for name, slope, cost, best in (("prerank", 0.1, 1e-3, 0.05), ("deepctr", 0.05, 8e-3, 0.003)):
        code = FAKE.replace("SLOPE", str(slope)).replace("COST", str(cost))
        (runners / f"run_{name}.py").write_text(code.replace("BEST", str(best)))
    return runners, environments


def _bench(folder: Path, **more: Any) -> dict[str, Any]:
    runners, environments = _fakes(folder)
    options: dict[str, Any] = {"rows": [50], "num_steps": 8, "turn": 2, "batch_size": 16}
    options |= {"num_turns": 3, "lines": ["deepctr", "deepctr/step"], "runners": runners}
    return bench_peers(folder / "out", environments=environments, **(options | more))


def test_rates_are_the_best_of_four_and_ratios_are_of_cpu_time(tmp_path: Path) -> None:
    found = _bench(tmp_path)
    assert found["rates"] == TUNED
    curve = found["curves"]["26x50"]["deepctr"]
    assert list(curve) == ["0.001", "0.003", "0.01", "0.03"]
    assert [point["updates"] for point in curve["0.003"]] == [2, 4, 6, 8]
    ratios = {key.removeprefix("train/26x50/"): value for key, value in found["ratios"].items()}
    assert ratios["deepctr"] == ratios["deepctr/step"] == pytest.approx(8)
    # The peer's best entropy, 0.6, takes it 8 updates of 8 ms and us 4 of 1 ms.
    assert ratios["deepctr/to_ne"] == pytest.approx(16)
    assert ratios["own_step"] == pytest.approx(1)
    by_line = {row["line"]: row for row in found["rows"]}
    assert by_line["deepctr"]["cpu_ms"] == pytest.approx(8)
    assert by_line["deepctr"]["samples_per_s"] == pytest.approx(16 / 16e-3)
    assert by_line["deepctr"]["best_ne"] == pytest.approx(0.6)
    assert by_line["deepctr"]["timed_ne"] == pytest.approx(0.7)
    assert len(by_line["deepctr"]["cpu_ms_of_turns"]) == 3
    assert by_line["deepctr"]["peak_mib"] == 9
    assert by_line["deepctr"]["told"]["mode"] == "fit"
    assert by_line["deepctr/step"]["told"]["mode"] == "step"


def test_what_was_learned_before_is_taken_and_a_quality_we_never_reach_is_none(
    tmp_path: Path,
) -> None:
    first = _bench(tmp_path / "first")
    poor = [{"updates": 8, "loss": 0.9, "ne": 0.9, "auc": 0.5}]
    first["curves"]["26x50"]["prerank"] = {"0.2": poor}
    found = _bench(tmp_path / "second", earlier=first)
    assert found["curves"] == first["curves"]
    assert found["rates"]["26x50"]["prerank"] == "0.2"
    assert found["ratios"]["train/26x50/deepctr"] == pytest.approx(8)
    assert found["ratios"]["train/26x50/deepctr/to_ne"] is None


def test_errors_name_the_line_and_what_it_said_last(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no line 'deepctrr'"):
        bench_peers(tmp_path, runners=RUNNERS, lines=["deepctrr"])
    with pytest.raises(InputError, match="--runners benchmarks/peers"):
        bench_peers(tmp_path, runners=tmp_path)
    runners, environments = _fakes(tmp_path)
    (runners / "run_deepctr.py").write_text("raise SystemExit('no such option')")
    with pytest.raises(PrerankError, match="deepctr/step stopped: no such option"):
        bench_peers(
            tmp_path / "out",
            runners=runners,
            environments=environments,
            rows=[50],
            num_steps=1,
            batch_size=16,
            lines=["deepctr"],
        )


def test_every_line_has_a_runner_and_a_full_freeze_with_the_projects_torch() -> None:
    for peer in ("deepctr", "fuxictr", "rechub", "torchrec"):
        assert (RUNNERS / f"run_{peer}.py").is_file()
        lines = (RUNNERS / f"{peer}.txt").read_text().splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        assert all("==" in pin for pin in pins)
        assert "torch==2.13.0" in pins


def test_an_environment_is_made_once_and_again_when_its_pins_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runners, environments = _fakes(tmp_path)
    python = environments / "deepctr" / "bin" / "python"
    assert make_environment("deepctr", runners, environments) == python
    assert str(python.readlink()) == sys.executable
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (runners / "deepctr.txt").write_text("no-such-package==0\n")
    with pytest.raises(PrerankError, match="environment of deepctr cannot be made"):
        make_environment("deepctr", runners, environments)
    assert not (environments / "deepctr" / ".ready").exists()


def _protocol() -> ModuleType:
    """Load the functions of protocol.py, not what it does to this process's stdout."""
    code = (RUNNERS / "protocol.py").read_text()
    spec = importlib.util.spec_from_loader("protocol", loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    harmless = code.replace('_OUT = os.fdopen(os.dup(1), "w", encoding="utf-8")', "")
    harmless = harmless.replace("os.dup2(2, 1)", "pass;")
    assert harmless.count("dup") == 0
    exec(compile(harmless, "protocol.py", "exec"), module.__dict__)
    return module


def test_metrics_of_runners_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(500) < 0.3).astype(np.float32)
    probability = np.round(rng.random(500), 2).clip(0.01, 0.99)  # with ties
    found = _protocol().binary_metrics(probability, label)
    assert found["loss"] == pytest.approx(log_loss(label, probability), rel=1e-6)
    assert found["auc"] == pytest.approx(roc_auc_score(label, probability))
    base = log_loss(label, np.full(500, label.mean(), dtype=np.float64))
    assert found["ne"] == pytest.approx(found["loss"] / base)


def test_everybody_reads_the_same_impressions(tmp_path: Path) -> None:
    drawn = planted_impressions(120, fields=3, rows=20)
    write_data(tmp_path, drawn, num_valid=20, rows=20)
    with np.load(tmp_path / "data.npz") as file:
        assert (file["ids"] == drawn.ids.numpy()).all()
        assert int(file["num_valid"]) == 20
    log = open_log(tmp_path / "log")
    train = log["train"]
    assert train.num_requests == 100
    transforms = Transforms.fit(train, min_count=1)
    (batch,) = train.batches(transforms, 100, shuffle=False)
    rows = batch.inputs.pairs.candidate.categorical.numpy()
    for k, name in enumerate(("f00", "f01", "f02")):
        values = log.vocabulary(name).values.to_numpy(zero_copy_only=False)
        assert (values[rows[:, k]] == drawn.ids[20:, k].numpy()).all()
    assert (batch.evidence.labels["click"].numpy() == drawn.label[20:].numpy()).all()


@pytest.mark.slow
def test_our_own_two_runners_learn_the_same(tmp_path: Path) -> None:
    found = bench_peers(
        tmp_path,
        runners=RUNNERS,
        rows=[50],
        num_steps=30,
        turn=10,
        num_turns=3,
        batch_size=256,
        lines=[],
    )
    fit, bare = found["rows"]
    first, *_, last = found["curves"]["26x50"]["prerank"][found["rates"]["26x50"]["prerank"]]
    assert (first["updates"], last["updates"]) == (10, 30)
    assert last["ne"] < first["ne"]
    assert bare["timed_ne"] == pytest.approx(last["ne"], abs=1e-4)
    assert fit["timed_ne"] == pytest.approx(last["ne"], abs=0.01)
    assert found["ratios"]["train/26x50/own_step"] > 0
