"""Which files of a folder or table are images, of which class; and what is passed over, to be said."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ssl_weighting.data.tables import ENDINGS as TABLES
from ssl_weighting.data.tables import Column, read_columns, read_table, table_ending
from ssl_weighting.errors import UserError, named
from ssl_weighting.image_pixels import ENDINGS

HIDDEN = (".", "@")
"""Folders and files whose names begin so are nobody's data: .git, .ipynb_checkpoints, a NAS's @eaDir and @Recycle."""
SYSTEM_FOLDERS = (
    *("__macosx", "_macosx", "__pycache__", "lost+found", "found.000", "#recycle", "#snapshot", "~snapshot"),
    *("$recycle.bin", "$extend", "recycler", "system volume information", "network trash folder"),
)
"""The same, by their whole name, in small letters: a class may well be called #1, $5 or _other."""


class ImageFile(NamedTuple):
    """One file.

    Attributes:
        path: Where it is.
        name: Where it is below the user's folder, with forward slashes: the same on every machine.
        label: Number of its class, −1 if unknown.
    """

    path: str
    name: str
    label: int


class NamedImage(NamedTuple):
    """One file, before the classes have numbers.

    Attributes:
        path: See :class:`ImageFile`.
        name: See :class:`ImageFile`.
        label: Name of its class, empty if unknown.
    """

    path: str
    name: str
    label: str


@dataclass
class PassedOver:
    """What a folder holds besides images that are read.

    Attributes:
        folders: Hidden and system folders, by name.
        hidden: Number of hidden files.
        kinds: Other files, by the ending of their name.
        loose: Images that lie beside the classes' folders.
        linked: Links to folders that are read under another name.
        broken: Links to nothing that do not look like images.
        unreadable: Folders that may not be read.
        other_parts: Folders that were given as another part, such as the test images.
    """

    folders: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    loose: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    other_parts: list[str] = field(default_factory=list)

    def sentence(self, what: str) -> str | None:
        """All of it in one line; nothing, if there is nothing.

        Args:
            what: Key and value that name the folder.
        """
        parts = [
            _counted(self.folders.total(), "hidden or system folder", _tally(self.folders)),
            _counted(self.hidden, "hidden file"),
            _counted(self.kinds.total(), "file", f"of kinds that are not read: {_tally(self.kinds)}"),
            _counted(len(self.loose), "image", f"in no class's folder: {first_few(self.loose)}"),
            _counted(len(self.linked), "link", f"to folders that are read anyway: {first_few(self.linked)}"),
            _counted(len(self.broken), "link", f"to nothing: {first_few(self.broken)}"),
            _counted(len(self.unreadable), "folder", f"that may not be read: {first_few(self.unreadable)}"),
            _counted(
                len(self.other_parts), "folder", f"given as another part: {first_few(self.other_parts)}"
            ),
        ]
        said = [part for part in parts if part]
        return f"{what}: passed over {'; '.join(said)}" if said else None


def _counted(count: int, noun: str, more: str = "") -> str:
    return f"{count} {noun}{'s' * (count != 1)}{f' ({more})' if more else ''}" if count else ""


def _tally(counts: Counter[str], most: int = 6) -> str:
    listed = [f"{count} {name}" for name, count in counts.most_common(most)]
    return ", ".join(listed) + (", ..." if len(counts) > most else "")


def first_few(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_hidden(folder: str) -> bool:
    """Whether a folder of this name is the system's or a program's, and not data."""
    return folder.startswith(HIDDEN) or folder.lower() in SYSTEM_FOLDERS


def images_below(folder: Path, without: Iterable[Path], passed: PassedOver) -> list[Path]:
    """Image files below a folder, in the order of their names, whatever the file system's is.

    Links are followed, none of them twice: a folder that is reached by its own name is read by that.

    Args:
        folder: Where to look.
        without: Folders that are something else.
        passed: Where to note what is passed over.
    """
    found: list[Path] = []
    read: set[Path] = set()
    excluded = {path.resolve() for path in without}
    waiting, links = [folder], list[Path]()
    while waiting or links:
        here = waiting.pop() if waiting else links.pop(0)
        if (real := here.resolve()) in read:
            passed.linked.append(printable(here.relative_to(folder).as_posix()))
            continue
        read.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            passed.unreadable.append(printable(here.relative_to(folder).as_posix()))
            continue
        for entry in entries:
            path = here / entry.name
            if not entry.is_dir():
                _sort_in(path, entry.is_symlink(), found, passed)
            elif is_hidden(entry.name):
                passed.folders[printable(entry.name)] += 1
            elif path.resolve() in excluded:
                passed.other_parts.append(printable(entry.name))
            else:
                (links if entry.is_symlink() else waiting).append(path)
    return sorted(found, key=lambda path: _as_walked(path.relative_to(folder)))


def _sort_in(path: Path, is_link: bool, found: list[Path], passed: PassedOver) -> None:
    if path.name.startswith(HIDDEN[0]):
        passed.hidden += 1
    elif path.name.lower().endswith(ENDINGS):
        found.append(path)
    elif is_link and not path.exists():
        passed.broken.append(printable(path.name))
    else:
        passed.kinds[printable(path.suffix.lower()) or "without an ending"] += 1


def _as_walked(path: Path) -> list[tuple[bool, str]]:
    """Sorts the files of a folder before those of its sub-folders."""
    return [*((True, name) for name in path.parts[:-1]), (False, path.name)]


def all_images(folder: Path, key: str, notes: list[str]) -> list[ImageFile]:
    """All images below a folder, without labels.

    Args:
        folder: Where to look.
        key: The option that names it.
        notes: What is passed over is added to them.

    Raises:
        UserError: If there is no such folder, or no image in it.
    """
    what = named(key, folder)
    if not folder.is_dir():
        raise UserError(f"{what}: no such folder")
    passed = PassedOver()
    files = [
        ImageFile(str(path), path.relative_to(folder).as_posix(), -1)
        for path in images_below(folder, (), passed)
    ]
    said = passed.sentence(what)
    if not files:
        raise UserError(f"{f'{said};' if said else f'{what}:'} holds no image ({', '.join(ENDINGS)})")
    notes += [said] if said else []
    return files


def classified(
    where: Path, key: str, without: Iterable[Path], notes: list[str], columns: tuple[str, str]
) -> list[NamedImage]:
    """Labelled images: of a folder with one folder a class, or of a table.

    Args:
        where: The folder or table.
        key: The option that names it.
        without: Folders that are other parts of the data, wherever they lie.
        notes: What is passed over is added to them.
        columns: Of a table: that of the paths, and that of the labels.

    Raises:
        UserError: If it is missing, holds nothing of use, or contradicts itself.
    """
    rows = (
        _of_folder(where, key, tuple(without), notes) if where.is_dir() else _of_table(where, key, *columns)
    )
    _refuse_two_classes(rows, f"{key}={where}", is_table=not where.is_dir())
    return rows


def _of_folder(where: Path, key: str, without: tuple[Path, ...], notes: list[str]) -> list[NamedImage]:
    rows: list[NamedImage] = []
    passed, excluded = PassedOver(), {path.resolve() for path in without}
    folders: dict[str, list[str]] = {}
    for folder in sorted(where.iterdir()):
        if not folder.is_dir():
            loose: list[Path] = []
            _sort_in(folder, folder.is_symlink(), loose, passed)
            passed.loose += [printable(path.name) for path in loose]
            continue
        if is_hidden(folder.name):
            passed.folders[printable(folder.name)] += 1
            continue
        if folder.resolve() in excluded:
            passed.other_parts.append(printable(folder.name))
            continue
        label = class_name(folder.name)
        inside = images_below(folder, without, passed)
        if not inside:
            said = passed.sentence("")
            raise UserError(
                f"{key}={where}: its folder {printable(folder.name)!r} holds no image; fill or remove it"
                + (f" ({said.removeprefix(': ')})" if said else "")
            )
        rows += [NamedImage(str(path), path.relative_to(where).as_posix(), label) for path in inside]
        folders.setdefault(label, []).append(folder.name)
    if not rows:
        raise UserError(f"{key}={where}: holds no folders with images; make one a class")
    if missing := [*passed.broken, *passed.unreadable]:
        raise UserError(
            f"{key}={where}: {first_few(missing)} cannot be read (a link to nothing, or a folder without the right to "
            "read it); repair or remove it"
        )
    said = passed.sentence(f"{key}={where}")
    notes += [said] if said else []
    notes += [
        f"{key}={where}: {len(names)} folders are called {label!r}, in different Unicode forms, and are one class"
        for label, names in folders.items()
        if len(names) > 1
    ]
    return rows


def _of_table(where: Path, key: str, paths: str, labels: str) -> list[NamedImage]:
    _require_table(where, f"{key}={where}")
    hint = "name yours with --data.path_column and --data.label_column"
    table = read_table(str(where), key.removeprefix("data."), paths, labels, hint)
    return [
        NamedImage(str(_existing(path, where, key)), path, class_name(label or ""))
        for path, label in zip(table[paths].to_pylist(), table[labels].to_pylist(), strict=True)
    ]


def _require_table(where: Path, what: str) -> None:
    if table_ending(where) is not None:
        return
    kind = f"not a folder, nor a table ({', '.join(TABLES)})" if where.exists() else "no such folder or table"
    raise UserError(f"{what}: {kind}")


def listed(where: Path, key: str, column: str) -> list[ImageFile]:
    """The images that a table names, a row each, in its order, without labels.

    Args:
        where: The table.
        key: The option that names it.
        column: That of the paths, relative to the table's folder or absolute.

    Raises:
        UserError: If there is no such table or column, or a file is not there.
    """
    what = named(key, where)
    _require_table(where, what)
    hint = "the run was trained on images: name the column of their paths with --data.path_column"
    (paths,) = read_columns(where, what, (Column(column, hint),))
    if not len(paths):
        raise UserError(f"{what}: has no rows")
    return [ImageFile(str(_existing(path, where, key)), path, -1) for path in paths.to_pylist()]


def _existing(path: str, table: Path, key: str) -> Path:
    """A path of a table, relative to the table's folder or absolute, if there is something."""
    whole = table.parent / path
    if not path or not os.path.lexists(whole) or whole.is_dir():
        raise UserError(
            f"{named(key, table)}: the file {path!r} is not in {table.parent}; complete it, or drop the row"
        )
    return whole


def _refuse_two_classes(rows: list[NamedImage], what: str, is_table: bool) -> None:
    """One and the same file cannot be of two classes."""
    seen: dict[object, tuple[int, NamedImage]] = {}
    for number, row in enumerate(rows, 1):
        if not row.label:
            continue
        before, first = seen.setdefault(identity(row.path), (number, row))
        if first.label != row.label:
            rest = f"rows {before} and {number}" if is_table else f"{first.name} and {row.name}"
            raise UserError(
                f"{what}: {rest} are the same file ({printable(row.name)}), once of class {first.label!r} and once of "
                f"{row.label!r}; keep one"
            )


def identity(path: str) -> object:
    """The same for all names of a file."""
    try:
        status = os.stat(path)
    except OSError:  # a link to nothing
        return path
    return status.st_dev, status.st_ino


def class_name(name: str) -> str:
    """A folder's name or a label as the name of a class: text that can be written, in Unicode's composed form."""
    return unicodedata.normalize("NFC", printable(name))


def in_natural_order(names: set[str]) -> list[str]:
    """Class names sorted, whole numbers by value: 2 comes before 10."""
    return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


def printable(name: str) -> str:
    """A file name that may not be UTF-8 as text that can be written."""
    return name.encode("utf-8", "backslashreplace").decode()
