from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prerank import models, objectives
from prerank.config import from_values
from prerank.errors import InputError
from prerank.recipes import Recipe, list_recipes, load_recipe, read_recipe, recipe_text
from prerank.schema import Schema
from prerank.training import FitConfig

SMALL = Recipe(
    what="for tests",
    model={"name": "two_tower", "history": {"kind": "mean"}},
    objective={"name": "bce"},
    fit={"lr": 0.1},
)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_builds(name: str, schemas: dict[str, Schema]) -> None:
    recipe = load_recipe(name)
    setup = recipe.build(schemas["rich"], f"recipe {name}")
    assert isinstance(setup.model, models.get(recipe.model["name"]))
    assert isinstance(setup.objective, objectives.get(recipe.objective["name"]))
    assert setup.config == from_values(FitConfig, recipe.fit, where=name)
    assert len(recipe.what) <= 100
    assert recipe.what.endswith(".")
    assert "\n" not in recipe.what


def test_weights_come_from_the_seed_alone(schemas: dict[str, Schema]) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(weights))
        model = SMALL.replace({"fit.seed": seed}).build(schemas["bare"], "test").model
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_replace_leaves_the_recipe_as_it_was() -> None:
    changed = SMALL.replace(
        {"fit.lr": 0.2, "fit.seed": 3, "model.history.kind": "attention", "model.tables.dim": 4}
    )
    assert changed.fit == {"lr": 0.2, "seed": 3}
    assert changed.model == {
        "name": "two_tower",
        "history": {"kind": "attention"},
        "tables": {"dim": 4},
    }
    assert SMALL.fit == {"lr": 0.1}
    assert SMALL.model["history"] == {"kind": "mean"}
    assert "tables" not in SMALL.model
    assert SMALL.replace({}) == SMALL


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "lr",
            "^'lr': expected section.key, as in fit.lr; the sections are model, objective,",
        ),
        ("", "^'': expected section.key"),
        ("fit.", "^'fit.': expected section.key"),
        ("fit..lr", "^'fit..lr': expected section.key"),
        ("modle.dim", "^'modle.dim': no section 'modle'; did you mean 'model'"),
        (
            "what.now",
            "^'what.now': no section 'what'; known: combine, fit, model, objective, sampling",
        ),
        ("fit.lr.max", "^'fit.lr.max': 'lr' is 0.1, which has no keys"),
    ],
)
def test_replace_refuses_keys_that_lead_nowhere(key: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SMALL.replace({key: 1})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fit.lrr", 1, "^test: fit: unknown key 'lrr'; did you mean 'lr'"),
        ("model.history.knd", 1, "^test: model: unknown key 'history.knd'; did you mean 'kind'"),
        ("model.history", 3, "^test: model: 'history' is 3; expected object, got int"),
        ("objective.sources", "rank", "^test: objective: 'sources' is 'rank'; expected array"),
        ("model.name", "tow_tower", "^model 'tow_tower' is not known; did you mean 'two_tower'"),
        ("model.name", "os:system", "^model 'os:system' is not known; known: "),
        ("objective.name", None, "^objective 'None' is not known"),
    ],
)
def test_build_names_what_is_wrong(
    schemas: dict[str, Schema], key: str, value: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        SMALL.replace({key: value}).build(schemas["bare"], "test")


def test_build_needs_names(schemas: dict[str, Schema]) -> None:
    nameless = Recipe(what="x", model={}, objective={"name": "bce"})
    with pytest.raises(InputError, match=r"^test: model: no 'name'; say which one to build"):
        nameless.build(schemas["bare"], "test")


def test_names_and_files_lead_to_the_same_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "mine.yml", "sub/mine"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(recipe_text("mlp"), encoding="utf-8")
        assert load_recipe(name) == load_recipe(str(path)) == load_recipe("mlp")
    Path("mlp").write_text("nonsense")  # a plain name is never a file
    assert load_recipe("mlp") == list_recipes()["mlp"]


def test_what_a_file_must_hold() -> None:
    recipe = read_recipe("{what: w, model: {name: a}, objective: {name: b}}", "here")
    assert recipe == Recipe(what="w", model={"name": "a"}, objective={"name": "b"}, fit={})
    with pytest.raises(InputError, match=r"^here: holds a str; expected the keys what, model, obj"):
        read_recipe("mlp", "here")
    with pytest.raises(InputError, match=r"^here: unknown key 'fits'; did you mean 'fit'"):
        read_recipe("{what: w, model: {}, objective: {}, fits: {}}", "here")
