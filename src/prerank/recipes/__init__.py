"""Recipes: named values for a model, an objective and its training; YAML without import paths."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from prerank.config import from_values
from prerank.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from prerank.models.base import Model
    from prerank.objectives.base import Objective
    from prerank.schema import Schema
    from prerank.training import FitConfig

__all__ = ["Recipe", "list_recipes", "load_recipe", "read_recipe", "recipe_text"]

_ORDER = ("two_tower", "mlp")


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values of one training.

    Parameters
    ----------
    what : str
        One line for people.
    model, objective : dict
        ``name`` in the room's table, and values of that class's ``Config``.
    fit : dict
        Values of ``FitConfig``.
    """

    what: str
    model: dict[str, Any]
    objective: dict[str, Any]
    fit: dict[str, Any] = {}

    def replace(self, assignments: Mapping[str, Any]) -> Recipe:
        """Return the recipe with ``section.key`` values replaced.

        Raises
        ------
        InputError
            A key without section, or an unknown section.
        """
        sections = {"model": dict(self.model), "objective": dict(self.objective)}
        sections["fit"] = dict(self.fit)
        for name, value in assignments.items():
            section, _, key = name.partition(".")
            if section not in sections or not key:
                raise InputError(
                    f"'{name}': expected section.key with section one of model, objective, fit"
                )
            sections[section][key] = value
        return msgspec.structs.replace(self, **sections)

    def build(self, schema: Schema, where: str) -> tuple[Model, Objective, FitConfig]:
        """Build model, objective and training values; weights come from torch's seed.

        Raises
        ------
        InputError
            An unknown name or key (the nearest is named), or a value of the wrong type.
        """
        import torch

        from prerank import models, objectives
        from prerank.training import FitConfig

        fit = from_values(FitConfig, self.fit, where=f"{where}: fit")
        model_kind: Any = models.get(_name(self.model, f"{where}: model"))
        objective_kind: Any = objectives.get(_name(self.objective, f"{where}: objective"))
        model_config = from_values(model_kind.Config, _rest(self.model), where=f"{where}: model")
        objective_config = from_values(
            objective_kind.Config, _rest(self.objective), where=f"{where}: objective"
        )
        torch.manual_seed(fit.seed)
        return model_config.build(schema), objective_config.build(schema), fit


def _name(section: Mapping[str, Any], where: str) -> str:
    if "name" not in section:
        raise InputError(f"{where}: no 'name'; say which one to build")
    return str(section["name"])


def _rest(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


def list_recipes() -> dict[str, Recipe]:
    """Return the recipes that come with the package, the most useful first."""
    folder = resources.files("prerank.recipes")
    names = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[-5:] == ".yaml")
    names.sort(key=lambda n: _ORDER.index(n) if n in _ORDER else len(_ORDER))
    return {name: read_recipe(recipe_text(name), f"recipe {name}") for name in names}


def recipe_text(name: str) -> str:
    """Return the YAML of a recipe that comes with the package.

    Raises
    ------
    InputError
        No such recipe; the nearest name is given.
    """
    folder = resources.files("prerank.recipes")
    file = folder / f"{name}.yaml"
    if not file.is_file():
        known = [f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[-5:] == ".yaml"]
        raise InputError(f"no recipe '{name}'; {did_you_mean(name, known)}")
    return file.read_text(encoding="utf-8")


def load_recipe(name_or_path: str) -> Recipe:
    """Load a recipe by name, or from a YAML file.

    Raises
    ------
    InputError
        No such recipe or file, no YAML, a misspelt key (the nearest one is named).
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.parent != Path():
        if not path.is_file():
            raise InputError(f"recipe {path}: no such file")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"recipe {path}: cannot be read ({error})") from None
        return read_recipe(text, f"recipe {path}")
    return read_recipe(recipe_text(name_or_path), f"recipe {name_or_path}")


def read_recipe(text: str, where: str) -> Recipe:
    """Parse the YAML of a recipe; ``where`` names it in errors."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: no valid YAML ({reason})") from None
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected the keys what, model, objective, fit")
    return from_values(Recipe, values, where=where)
