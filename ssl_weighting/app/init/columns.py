"""Which columns of a table ``init`` reads: those that are named, or else usual ones, where only one can be meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ssl_weighting.app.init.choice import Choice
from ssl_weighting.data.tables import column_names
from ssl_weighting.errors import UserError


class Kind(NamedTuple):
    """A kind of column.

    Attributes:
        option: The option that names one.
        holds: What is in it, for messages.
        usual: What it is usually called; the first is what the data set expects if nothing is said.
    """

    option: str
    holds: str
    usual: tuple[str, ...]


TEXTS = Kind(
    "text_column",
    "the texts",
    (
        "text",
        "review",
        "review_text",
        "reviewtext",
        "sentence",
        "comment",
        "comment_text",
        "content",
        "message",
        "tweet",
    ),
)
PATHS = Kind(
    "path_column",
    "the paths of the images",
    ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img_path"),
)
LABELS = Kind("label_column", "the labels", ("label", "labels", "class", "category", "sentiment", "target"))


def choose_columns(
    choice: Choice, kinds: Sequence[Kind], given: Mapping[str, str | None], tables: Mapping[str, Path | None]
) -> None:
    """Decide on the columns, and enter those that do not have the expected names into the recipe.

    Args:
        choice: The recipe in the making.
        kinds: The columns that are wanted.
        given: Names by option, as far as they were given.
        tables: Tables by the option that names them, the training data first; no folders.

    Raises:
        UserError: If a column is not there, or it is not clear which is meant.
    """
    found = {
        option: (path, column_names(path, f"{option} {path}")) for option, path in tables.items() if path
    }
    for kind in kinds:
        name = given.get(kind.option)
        if found:
            option, (path, names) = next(iter(found.items()))
            chosen = _chosen(kind, name, names, f"{option} {path}")
            if name or _plain(chosen) != kind.usual[0]:
                choice.data[kind.option] = chosen
                choice.note(
                    kind.option,
                    chosen,
                    "as given" if name else f"holds {kind.holds} by its name; {_flag(kind)} for another",
                )
            for option, (path, others) in found.items():
                if not _same(chosen, others):
                    raise UserError(
                        f"{option} {path}: has no column {chosen!r} but {_listed(others)}; its columns must be called as "
                        "those of the training data"
                    )
        elif name:
            raise UserError(f"{_flag(kind)} {name}: names a column of a table, and no table was given")


def _chosen(kind: Kind, name: str | None, names: Sequence[str], what: str) -> str:
    """The column of a kind: as given, or the one that has a usual name."""
    if name is not None:
        if not _same(name, names):
            raise UserError(f"{_flag(kind)} {name}: {what} has no such column but {_listed(names)}")
        return name
    expected = _same(kind.usual[0], names)
    usual = expected[:1] or [found for found in names if _plain(found) in kind.usual]
    others = [name for name in names if kind == PATHS and _plain(name) in TEXTS.usual]
    if not usual and others:
        raise UserError(
            f"{what}: has texts ({_listed(others)}) and no column of paths; texts are given by --text, or name the "
            f"column of the paths with {_flag(kind)}"
        )
    if len(usual) != 1:
        raise UserError(
            f"{what}: which column holds {kind.holds}? It has {_listed(names)}; name it with {_flag(kind)}"
        )
    return usual[0]


def _same(name: str, names: Sequence[str]) -> list[str]:
    return [found for found in names if _plain(found) == _plain(name)]


def _plain(name: str) -> str:
    return name.strip().lower()


def _flag(kind: Kind) -> str:
    return "--" + kind.option.replace("_", "-")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name or "''" for name in names[:20]) + (", ..." if len(names) > 20 else "")
