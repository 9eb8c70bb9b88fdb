from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Cli = Callable[..., Any]


def test_ls_names_every_recipe_the_most_useful_first(cli: Cli) -> None:
    found = cli("recipes", "ls", "--json").json
    assert set(found) == {"recipes"}
    assert all(set(recipe) == {"name", "what"} for recipe in found["recipes"])
    names = [recipe["name"] for recipe in found["recipes"]]
    assert names[:2] == ["two_tower", "mlp"]
    lines = cli("recipes", "ls").out.splitlines()
    assert [line.split()[0] for line in lines] == names
    for line, recipe in zip(lines, found["recipes"], strict=True):
        assert line.endswith(recipe["what"])
        assert line.index(recipe["what"]) == lines[0].index(found["recipes"][0]["what"])


def test_show_prints_what_cp_copies(cli: Cli, tmp_path: Path) -> None:
    text = cli("recipes", "show", "mlp").out
    assert cli("recipes", "show", "mlp", "--json").json == {"name": "mlp", "yaml": text}
    file = tmp_path / "my own.yaml"
    result = cli("recipes", "cp", "mlp", file)
    assert result.out == f"{file}\n"
    assert result.err == f"next: prerank train '{file}' --log LOG --out RUN\n"
    assert file.read_text() == text
    found = cli("recipes", "cp", "mlp", tmp_path, "--json").json
    assert found == {"name": "mlp", "path": str(tmp_path / "mlp.yaml")}
    assert (tmp_path / "mlp.yaml").read_text() == text


def test_cp_writes_nothing_over(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mlp.yaml"
    file.write_text("mine")
    for target in (file, tmp_path):
        result = cli("recipes", "cp", "mlp", target)
        assert result.status == 2
        assert result.error == f"prerank: {file}: exists already; choose another name"
    assert file.read_text() == "mine"


def test_bad_names_are_named(cli: Cli, tmp_path: Path) -> None:
    for argv, line in (
        (("show", "mpl"), "no recipe 'mpl'; did you mean 'mlp'?"),
        (("show", "../recipes/mlp"), "no recipe '../recipes/mlp'; "),
        (("cp", "mpl", tmp_path / "a.yaml"), "no recipe 'mpl'; did you mean 'mlp'?"),
        (("cp", "mlp", tmp_path / "a"), f"{tmp_path / 'a'}: expected a name that ends in .yaml"),
        (
            ("cp", "mlp", tmp_path / "none" / "a.yaml"),
            f"{tmp_path}/none/a.yaml: cannot be written: No such file or directory",
        ),
    ):
        result = cli("recipes", *argv)
        assert result.status == 2
        assert result.error.startswith(f"prerank: {line}")
