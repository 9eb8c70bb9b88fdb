from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

import prerank
from prerank import adapters, models, objectives, sampling
from prerank.errors import InputError
from prerank.plugins import lazy_names, load, lookup

GROUP = "prerank.examples"
TABLE = {"ordered": "collections:OrderedDict"}


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``plug(name=target)``: entry points of the group as if packages were installed."""

    def install(**targets: str) -> None:
        points = [EntryPoint(name, target, GROUP) for name, target in targets.items()]
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group: points if group == GROUP else []
        )

    return install


@pytest.fixture
def lazy_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module on disk that nobody has imported yet."""
    (tmp_path / "plugged_late.py").write_text("class Late: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "plugged_late"
    sys.modules.pop("plugged_late", None)


def find(name: str) -> object:
    return lookup(name, TABLE, group=GROUP, unknown=f"no dict '{name}'")


def test_a_target_is_imported_only_when_asked_for(lazy_module: str) -> None:
    table = {"late": f"{lazy_module}:Late", "broken": "no_such_module:Thing"}
    get, names = lazy_names(__name__, table)
    assert {"late", "broken", "GROUP"} <= set(names())
    assert lazy_module not in sys.modules
    assert get("late") is sys.modules[lazy_module].Late
    assert load(lazy_module) is sys.modules[lazy_module]


def test_other_packages_add_names_but_never_replace_one(plug: Callable[..., None]) -> None:
    plug(counter="collections:Counter", ordered="collections:Counter")
    assert find("counter").__name__ == "Counter"
    assert find("ordered").__name__ == "OrderedDict"


def test_an_unknown_name_gets_the_nearest_of_table_and_plugins(plug: Callable[..., None]) -> None:
    plug(counter="collections:Counter")
    with pytest.raises(InputError, match=r"^no dict 'conter'; did you mean 'counter'\?$"):
        find("conter")
    with pytest.raises(InputError, match="known: counter, ordered"):
        find("zzz")


@pytest.mark.parametrize("target", ["no_such_module:Thing", "collections:NoSuchDict"])
def test_a_broken_plugin_is_named_with_its_target(plug: Callable[..., None], target: str) -> None:
    plug(broken=target)
    with pytest.raises(InputError, match=f"'broken' .* as {target} .*{GROUP}.*no_such|NoSuch"):
        find("broken")
    assert find("ordered")  # the others work all the same


@pytest.mark.parametrize("room", [models, objectives, adapters, sampling])
def test_every_name_in_the_rooms_tables_is_there(room: ModuleType) -> None:
    for name, target in room.TABLE.items():
        found = room.get(name)
        assert f"{found.__module__}:{found.__qualname__}" == target
        assert target.startswith(room.__name__)


@pytest.mark.parametrize("module", [prerank, models, objectives, sampling])
def test_lazy_names_are_listed_found_and_refused_when_unknown(module: ModuleType) -> None:
    listed = dir(module)
    assert set(module.__all__) <= set(listed)
    for name in listed:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'Nop'"):
        _ = module.Nop
