from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from prerank.bench.hap import grid, sets
from prerank.bench.hap import study as study_of
from prerank.bench.hap.answers import PAIRS, answers
from prerank.bench.hap.execute import is_done, read_result, read_scores
from prerank.bench.hap.grid import LINES, final_jobs, lines_of, tuning_jobs
from prerank.bench.hap.page import page
from prerank.bench.hap.sets import SETS, StudySet
from prerank.bench.hap.study import Study
from prerank.errors import InputError
from prerank.training.interrupt import InterruptedRunError
from prerank.world import WorldConfig, write_world

_SMALL = ("ghcl", "heavy_hard")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hap") / "log"
    config = WorldConfig(
        num_users=40, num_items=500, num_requests=200, num_days=4, num_pool=20,
        num_retrieved=80, num_preranked=30, num_ranked=15, retrieval_score=False,
    )  # fmt: skip
    write_world(path, config)
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> StudySet:
    monkeypatch.setattr(grid, "RATES", (0.001, 0.01))
    return sets.StudySet(name="world", what="tiny", num_valid=30, num_test=30, max_seeds=2)


def test_the_study_runs_resumes_and_is_judged(log: Path, small: StudySet, tmp_path: Path) -> None:
    said: list[str] = []
    study = Study(small, log, tmp_path, only=_SMALL)
    assert not study.run(say=said.append, until=0.0)
    assert study.run(say=said.append)
    finished = study.finished()
    assert {name: len(seeds) for name, seeds in finished.items()} == {"ghcl": 2, "heavy_hard": 2}
    num_said = len(said)
    assert study.run(say=said.append)
    assert len(said) == num_said
    assert all(is_done(folder) for seeds in finished.values() for folder in seeds.values())
    assert len(read_scores(finished["ghcl"][0], "test")) > 30
    result = answers(study, said.append)
    assert set(result["lines"]) == {"ghcl", "heavy_hard", "random", "oracle"}
    assert result["rates"]["ghcl"].keys() == {"0.001", "0.01"}
    curve = result["shares"]["light -> heavy_hard"]["curve"]
    assert list(curve) == ["0.01", "0.02", "0.03", "0.05", "0.1", "0.2", "0.3", "0.5", "0.75", "1"]
    # Everything forwarded is the second model alone; the first k places of nothing are the first's.
    quota = result["quota"]
    for key in (f"recall@{quota}/T1", "utility@10/U"):
        alone = result["lines"]["heavy_hard"]["metrics"][key]["value"]
        assert curve["1"][key]["value"] == pytest.approx(alone, abs=1e-12)
    assert "heavy_hard - ghcl" in result["differences"]["H3"]
    assert any("early" in found for found in result["gradients"].values())
    best = result["shares"]["light -> heavy_hard"]["best"][f"recall@{quota}/T3"]
    assert best["best - all"]["p_holm"] >= best["best - all"]["p"]
    dropped = result["drops"]["light -> heavy_hard - control: light -> light of another seed"]
    assert f"recall@{quota}/U" in dropped
    late = next(iter(result["gradients"].values()))["late"]
    assert {"conflict/dense/exposed:random", "similarity/dense/exposed:random"} <= set(late)
    kept = result["promises"]
    assert all(row["asked"] == 2 and row["scored_share"] > 0 for row in kept)
    assert all(row["difference"]["p_holm"] >= row["difference"]["p"] for row in result["budgets"])
    text = page([msgspec.json.decode(msgspec.json.encode(result))])
    assert "one budget for all requests" in text
    assert "learning rates tried" in text


def test_a_misspelt_line_is_refused(log: Path, small: StudySet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no line 'ghlc'"):
        Study(small, log, tmp_path, only=("ghlc",)).run(say=print)


def test_the_whole_study_is_at_most_250_trainings() -> None:
    keys = set()
    for name, chosen in SETS.items():
        lines = lines_of(name, chosen.lines)
        rates = {line.name: grid.RATES[1] for line in lines if line.rate_of is None}
        if chosen.rates_of is None:
            keys |= {job.key + name for job in tuning_jobs(name, lines)}
        keys |= {job.key + name for job in final_jobs(name, lines, rates, chosen.max_seeds)}
    assert len(keys) == 245  # as the hypotheses file says; the bound is 250


def test_a_set_takes_the_rates_that_another_one_chose(
    log: Path, small: StudySet, tmp_path: Path
) -> None:
    other = msgspec.structs.replace(
        small, name="world_1", lines=("ghcl",), rates_of="world", max_seeds=1
    )
    study = Study(other, log, tmp_path)
    with pytest.raises(InputError, match=r"'world' chose.*has none for ghcl; run bench hap world"):
        study.run(say=print)
    origin = Study(small, log, tmp_path, only=("ghcl",), max_seeds=1)
    assert origin.run(say=print)
    assert study.run(say=print)
    (folder,) = study.finished()["ghcl"].values()
    assert folder.parent == tmp_path / "world_1" / "jobs"
    assert study.rates() == origin.rates()
    assert len(list(folder.parent.iterdir())) == 1  # nothing was tuned


def test_ctrl_c_is_no_failed_training(
    log: Path, small: StudySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise InterruptedRunError("interrupted")

    monkeypatch.setattr(study_of, "execute", interrupted)
    study = Study(small, log, tmp_path, only=("ghcl",))
    with pytest.raises(InterruptedRunError):
        study.run(say=print)
    assert not list(tmp_path.rglob("result.json"))


def test_times_are_of_trainings_without_diagnosis(
    log: Path, small: StudySet, tmp_path: Path
) -> None:
    study = Study(small, log, tmp_path, only=("ghcl",))
    assert study.run(say=print)
    for seed, folder in study.finished()["ghcl"].items():
        path = folder / "result.json"
        found = {**read_result(folder), "train_s": 1.0 + seed}
        path.write_bytes(msgspec.json.encode(found))
    line = answers(study, print)["lines"]["ghcl"]
    assert line["train_s"] == 1.0  # seed 1 was diagnosed
    assert line["timed"] == {"seeds": 1, "diagnosed": False}


def test_every_line_is_well_formed() -> None:
    names = [line.name for line in LINES]
    assert len(names) == len(set(names))
    by_name = {line.name: line for line in LINES}
    for line in LINES:
        if line.rate_of is not None:
            assert by_name[line.rate_of].rate_of is None
    for pairs in PAIRS.values():
        assert {name for pair in pairs for name in pair} <= set(names)


def test_the_same_values_have_the_same_key() -> None:
    job = next(iter(tuning_jobs("world", LINES)))
    renamed = msgspec.structs.replace(job.line, what="other words", seeds=1)
    assert msgspec.structs.replace(job, line=renamed).key == job.key
    assert msgspec.structs.replace(job, lr=0.5).key != job.key
    assert dataclasses.is_dataclass(Study)
