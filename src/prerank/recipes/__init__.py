"""Recipes: named values for a model, an objective and its training; YAML without import paths."""

from prerank.recipes.recipe import Recipe, list_recipes, load_recipe, read_recipe, recipe_text
from prerank.recipes.values import parse_yaml

__all__ = ["Recipe", "list_recipes", "load_recipe", "parse_yaml", "read_recipe", "recipe_text"]
