"""Recipes: named values for a model, an objective and its training; YAML without import paths."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from prerank.config import from_values
from prerank.errors import InputError, did_you_mean
from prerank.recipes.values import parse_yaml

if TYPE_CHECKING:
    from prerank.log import Part
    from prerank.models.base import Model
    from prerank.objectives.base import Objective
    from prerank.schema import Schema
    from prerank.training import FitConfig, FitReport
    from prerank.training.combine import Combine
    from prerank.training.run import Trunk

__all__ = ["Recipe", "Setup", "list_recipes", "load_recipe", "read_recipe", "recipe_text"]

_ORDER = ("two_tower", "mlp")
_SECTIONS = ("model", "objective", "sampling", "combine", "fit")


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What a recipe builds for a schema.

    Parameters
    ----------
    model, objective, config : Model, Objective, FitConfig
        As :func:`~prerank.training.fit` takes them.
    sampling : Config, optional
        Of the sampler, which is built from the part it draws for.
    combine : Combine, optional
        Parts to gradient.
    trunk : Trunk, optional
        The run whose model the model is built over.
    """

    model: Model
    objective: Objective
    config: FitConfig
    sampling: Any = None
    combine: Combine | None = None
    trunk: Trunk | None = None

    def fit(self, train: Part, **options: Any) -> FitReport:
        """Train on a part; ``options`` go to :func:`~prerank.training.fit`."""
        from prerank.training import fit

        if self.sampling is not None:
            options["sampler"] = self.sampling.build(train)
        if self.combine is not None:
            options["combine"] = self.combine
        if self.trunk is not None:
            options["trunk"] = self.trunk
        return fit(self.model, train, self.objective, config=self.config, **options)


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values of one training.

    Parameters
    ----------
    what : str
        One line for people.
    model, objective : dict
        ``name`` in the room's table, and values of that class's ``Config``.
    sampling : dict, optional
        The same for the sampler of candidates; without it every logged candidate is trained on.
    combine : dict, optional
        The same for the rule that turns the objective's parts into a gradient; default their sum.
    fit : dict
        Values of ``FitConfig``.
    """

    what: str
    model: dict[str, Any]
    objective: dict[str, Any]
    sampling: dict[str, Any] = {}
    combine: dict[str, Any] = {}
    fit: dict[str, Any] = {}

    def replace(self, assignments: Mapping[str, Any]) -> Recipe:
        """Return the recipe with ``section.key`` values replaced; keys may go deeper.

        Raises
        ------
        InputError
            A key without section, an unknown section, a path through something without keys.

        Examples
        --------
        >>> recipe = Recipe(what="", model={"name": "mlp"}, objective={"name": "bce"})
        >>> recipe.replace({"fit.lr": 0.1, "model.head.width": 8}).model
        {'name': 'mlp', 'head': {'width': 8}}
        """
        sections = {name: copy.deepcopy(getattr(self, name)) for name in _SECTIONS}
        for name, value in assignments.items():
            section, _, rest = name.partition(".")
            *path, key = rest.split(".")
            if not all((*path, key)):
                raise InputError(
                    f"'{name}': expected section.key, as in fit.lr; the sections are "
                    f"{', '.join(_SECTIONS)}"
                )
            if section not in sections:
                raise InputError(
                    f"'{name}': no section '{section}'; {did_you_mean(section, _SECTIONS)}"
                )
            inner = sections[section]
            for step in path:
                inner = inner.setdefault(step, {})
                if not isinstance(inner, dict):
                    raise InputError(f"'{name}': '{step}' is {inner!r}, which has no keys")
            inner[key] = value
        return msgspec.structs.replace(self, **sections)

    def build(self, schema: Schema, where: str, *, over: Path | None = None) -> Setup:
        """Build all that a training needs; weights come from torch's seed.

        Parameters
        ----------
        schema : Schema
            Of the log; not read where the model is built over another one, which has a schema.
        where : str
            Names the recipe in errors.
        over : Path, optional
            Folder of a complete run of a light model that the model is built over.

        Raises
        ------
        InputError
            An unknown name or key (the nearest is named), or a value of the wrong type; a model
            that cannot be built over the one in ``over``.
        """
        import torch

        from prerank import models, objectives
        from prerank.training import FitConfig

        fit = from_values(FitConfig, self.fit, where=f"{where}: fit")

        def config(section: str, get: Callable[[str], Any]) -> Any:
            values, place = getattr(self, section), f"{where}: {section}"
            kind = get(_name(values, place))
            return from_values(kind.Config, _rest(values), where=place)

        model, objective = config("model", models.get), config("objective", objectives.get)
        sampler = rule = None
        if self.sampling:
            from prerank import sampling

            sampler = config("sampling", sampling.get)
        if self.combine:
            from prerank.training import combine

            rule = config("combine", combine.get).build()
        torch.manual_seed(fit.seed)
        if over is None:
            return Setup(model.build(schema), objective.build(schema), fit, sampler, rule)
        built, trunk = _over(over, self.model["name"], model, where)
        return Setup(built, objective.build(built.schema), fit, sampler, rule, trunk)


def _over(folder: Path, name: str, config: Any, where: str) -> tuple[Model, Trunk]:
    """Build a model over that of a run."""
    from prerank.models import HAPExpressive, HAPLight
    from prerank.training import load_run
    from prerank.training.run import Trunk, read_run

    if not isinstance(config, HAPExpressive.Config):
        raise InputError(
            f"{where}: --over: the model '{name}' cannot be built over another one; use a recipe "
            "of hap_expressive"
        )
    light = load_run(folder)
    if not isinstance(light, HAPLight):
        raise InputError(
            f"{folder}: --over: holds a {read_run(folder).model.name}; expected a run of hap_light"
        )
    return HAPExpressive.over(light, config), Trunk.of(folder)


def _name(section: Mapping[str, Any], where: str) -> str:
    if "name" not in section:
        raise InputError(f"{where}: no 'name'; say which one to build")
    return str(section["name"])


def _rest(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


def list_recipes() -> dict[str, Recipe]:
    """Return the recipes that come with the package, the most useful first."""
    return {name: load_recipe(name) for name in _names()}


def _names() -> list[str]:
    files = (Path(file.name) for file in resources.files("prerank.recipes").iterdir())
    names = sorted(path.stem for path in files if path.suffix == ".yaml")
    return sorted(names, key=lambda n: _ORDER.index(n) if n in _ORDER else len(_ORDER))


def recipe_text(name: str) -> str:
    """Return the YAML of a recipe that comes with the package.

    Raises
    ------
    InputError
        No such recipe; the nearest name is given.
    """
    known = _names()
    if name not in known:
        raise InputError(f"no recipe '{name}'; {did_you_mean(name, known)}")
    return (resources.files("prerank.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(name_or_path: str) -> Recipe:
    """Load a recipe by name, or from a file: anything with a slash, or that ends in .yaml or .yml.

    Raises
    ------
    InputError
        No such recipe or file, no YAML, a misspelt key (the nearest one is named).
    """
    path, where = Path(name_or_path), f"recipe {name_or_path}"
    if path.suffix not in (".yaml", ".yml") and path.parent == Path():
        return read_recipe(recipe_text(name_or_path), where)
    if not path.exists():
        known = ", ".join(_names())
        raise InputError(
            f"{where}: no such file; recipes that come with prerank have plain names: {known}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{where}: is no UTF-8 text; expected YAML") from None
    return read_recipe(text, where)


def read_recipe(text: str, where: str) -> Recipe:
    """Parse the YAML of a recipe; ``where`` names it in errors."""
    values = parse_yaml(text, where)
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise InputError(f"{where}: holds {found}; expected the keys what, {', '.join(_SECTIONS)}")
    return from_values(Recipe, values, where=where)
