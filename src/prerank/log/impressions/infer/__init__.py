"""A draft of the map of a flat table, from the table itself, with the evidence."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import yaml

from prerank.config import from_values
from prerank.errors import InputError
from prerank.log.impressions.infer.columns import choices_of
from prerank.log.impressions.infer.draft import Draft
from prerank.log.impressions.infer.keys import find_keys
from prerank.log.impressions.infer.profile import profile_of
from prerank.log.impressions.mapping import ImpressionMap
from prerank.log.impressions.source import FlatSource, open_source

__all__ = ["MapDraft", "infer_map", "load_map"]


class MapDraft(msgspec.Struct, frozen=True):
    """What `infer_map` found.

    Parameters
    ----------
    mapping : ImpressionMap or None
        The draft, if it can be used as it is; None while something must be filled in.
    evidence : dict of str to str
        Column -> what decided its place.
    questions : tuple of str
        What could not be decided; the text marks these lines with CHECK.
    text : str
        The draft as YAML with comments.
    num_rows : int
        Rows that were looked at.
    """

    mapping: ImpressionMap | None
    evidence: dict[str, str]
    questions: tuple[str, ...]
    text: str
    num_rows: int


def infer_map(source: pa.Table | str | Path, *, max_rows: int = 200_000) -> MapDraft:
    """Draft the map of a flat table: roles, owners, kinds and labels, by what the columns hold.

    The key columns are found by name and by how their values lie in time; whose a feature is, by
    what it is constant in; labels, by name, by values, or as events. A column that is there only
    where a label is 1 is taken for an outcome, not a feature. It is a draft: read it.

    Parameters
    ----------
    source : pyarrow.Table, path or URI
        As in `from_impressions`.
    max_rows : int
        Look at the first so many rows.

    Raises
    ------
    InputError
        The source cannot be read, or has no rows.

    Examples
    --------
    >>> table = pa.table({
    ...     "who": [n // 9 % 7 for n in range(500)], "movie": [n * n % 53 for n in range(500)],
    ...     "when": [1.6e9 + 300 * n for n in range(500)], "clicked": [n % 2 for n in range(500)],
    ... })
    >>> draft = infer_map(table)
    >>> draft.mapping.user, draft.mapping.item, draft.mapping.time_unit, draft.mapping.engaged
    ('who', 'movie', 's', 'clicked')
    """
    opened = open_source(source)
    header = _missing_header(opened)
    if header:
        opened = open_source(source, header)
    table, whole = _first_rows(opened, max_rows)
    if not table.num_rows:
        raise InputError(f"{opened.where}: no rows; nothing to infer from")
    profiles = {name: profile_of(name, table[name]) for name in table.column_names}
    keys = find_keys(profiles)
    choices = choices_of(profiles, keys)
    rows = f"{table.num_rows:,} rows" if whole else f"the first {table.num_rows:,} rows"
    title = (
        f"Draft of a map from {opened.where}: {rows}, {len(profiles)} columns.\n"
        "Evidence follows each line; what could not be decided is marked CHECK. A feature must be\n"
        "known before the item is shown. Next: prerank data import parquet SRC OUT --map THIS"
    )
    draft = Draft(title, keys, choices, profiles, header)
    return MapDraft(
        mapping=_mapping(draft.text),
        evidence={
            **{
                getattr(keys, role): keys.why[role]
                for role in ("user", "item", "time", "request")
                if getattr(keys, role) is not None
            },
            **{c.column: c.why for c in choices},
        },
        questions=tuple(draft.open),
        text=draft.text,
        num_rows=table.num_rows,
    )


def load_map(path: str | Path) -> ImpressionMap:
    """Read a map from YAML.

    Raises
    ------
    InputError
        No such file, no valid YAML, an unknown key (the nearest is named), a wrong value.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise InputError(f"{path}: cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "no valid YAML"
        raise InputError(f"{path}{line}: {problem}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected keys and values (user: COLUMN, ...)")
    return from_values(ImpressionMap, values, where=str(path))


def _mapping(text: str) -> ImpressionMap | None:
    try:
        mapping = from_values(ImpressionMap, yaml.safe_load(text), where="draft")
        mapping.schema()
    except InputError:
        return None
    return mapping


def _missing_header(source: FlatSource) -> tuple[str, ...]:
    """Return names for the columns of a text file whose first line holds numbers."""
    if source.kind not in (".csv", ".tsv"):
        return ()
    names = source.names()
    if not any(name.replace(".", "", 1).replace("-", "", 1).isdigit() for name in names):
        return ()
    return tuple(f"c{k}" for k in range(1, len(names) + 1))


def _first_rows(source: FlatSource, max_rows: int) -> tuple[pa.Table, bool]:
    schema, batches = source.batches()
    taken, num_rows = [], 0
    for batch in batches:
        taken.append(batch)
        num_rows += batch.num_rows
        if num_rows > max_rows:
            break
    table = pa.Table.from_batches(taken, schema)
    return table.slice(0, max_rows), num_rows <= max_rows
