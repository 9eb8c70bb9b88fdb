"""``prerank recipes``: list, show and copy recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prerank.cli.output import JsonOption, print_json, suggest

__all__ = ["app"]

app = typer.Typer(help="List, show and copy training recipes.", no_args_is_help=True)


@app.command()
def ls(as_json: JsonOption = False) -> None:
    """List the recipes, the most useful first.

    Example: prerank recipes ls
    """
    from prerank.recipes import list_recipes

    recipes = list_recipes()
    if as_json:
        print_json({"recipes": [{"name": name, "what": r.what} for name, r in recipes.items()]})
        return
    width = max(map(len, recipes))
    for name, recipe in recipes.items():
        typer.echo(f"{name:<{width}}  {recipe.what}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a recipe.")],
    as_json: JsonOption = False,
) -> None:
    """Print the YAML of a recipe.

    Example: prerank recipes show two_tower
    """
    from prerank.recipes import recipe_text

    text = recipe_text(name)
    if as_json:
        print_json({"name": name, "yaml": text})
    else:
        typer.echo(text, nl=False)


@app.command()
def cp(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a recipe.")],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="YAML file to make, or a folder to put it in.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Copy a recipe to a file of your own, to change it.

    Example: prerank recipes cp two_tower mine.yaml
    """
    from prerank.errors import InputError
    from prerank.recipes import recipe_text

    text = recipe_text(name)
    if path.is_dir():
        path = path / f"{name}.yaml"
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"{path}: expected a name that ends in .yaml")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path}: exists already; choose another name") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    if as_json:
        print_json({"name": name, "path": str(path)})
        return
    typer.echo(str(path))
    suggest(("train", path, "--log", "LOG", "--out", "RUN"))
