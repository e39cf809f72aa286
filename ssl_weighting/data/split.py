"""The split protocol: which examples are labelled, validate or are unlabelled; drawn once, kept in a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_weighting.checks import require
from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file

VERSION = 1
PARTS = ("labeled", "validation", "unlabeled")


@dataclass(frozen=True)
class Split:
    """Row numbers of a data set's training examples.

    Attributes:
        data_set: Name of the data set.
        checksum: sha256 of its training examples and labels.
        seed: What it was drawn with.
        labeled: int64, sorted.
        validation: int64, sorted; disjoint from both others.
        unlabeled: int64, sorted; position in this list = row of Λ. The labelled examples are among them.
        dropped: int64, sorted; left out of the pool as near duplicates of test examples. ``None`` where nobody looked.
    """

    data_set: str
    checksum: str
    seed: int
    labeled: Tensor
    validation: Tensor
    unlabeled: Tensor
    dropped: Tensor | None = None

    def sha256(self) -> str:
        """Fingerprint of the three lists and the data they point into."""
        digest = hashlib.sha256(f"{self.data_set} {self.checksum}".encode())
        for part in PARTS:
            digest.update(part.encode() + getattr(self, part).numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def _share(counts: Tensor, total: int) -> Tensor:
    """``total`` dealt out in proportion to ``counts``, by largest remainder, no class beyond its count."""
    quota = counts.double() * total / counts.sum()
    share = quota.floor().long()
    for c in (quota - share).argsort(descending=True, stable=True)[: total - int(share.sum())]:
        share[c] += 1
    return share


def _one_each(share: Tensor) -> Tensor:
    """Shares (K,) int64 with a class that would get none given one of the largest share's, while there is one over."""
    for c in (share == 0).nonzero().flatten().tolist():
        if share.max() > 1:
            share[share.argmax()] -= 1
            share[c] = 1
    return share


def _some(foreign: list[Tensor], wanted: int, generator: torch.Generator) -> list[Tensor]:
    """So many rows, class by class in proportion."""
    counts = torch.tensor([len(rows) for rows in foreign])
    return [
        rows[torch.randperm(len(rows), generator=generator)[:share]]
        for rows, share in zip(
            foreign, _share(counts, wanted).tolist() if wanted else [0] * len(foreign), strict=True
        )
    ]


def _fewer(pool: Tensor, always: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A mask of ``count`` of the rows that a mask (n,) bool has set, ``always`` among them."""
    others = pool.clone()
    others[always] = False
    rows = others.nonzero().flatten()
    if not 0 <= count - len(always) <= len(rows):
        raise UserError(
            f"data.num_unlabeled: {count} of them would not be foreign, and there are {len(always)} with a label and "
            f"{len(rows)} without; change it, or data.foreign_fraction"
        )
    chosen = torch.zeros_like(pool)
    chosen[always] = True
    chosen[rows[torch.randperm(len(rows), generator=generator)[: count - len(always)]]] = True
    return chosen


def validation_shares(counts: Tensor) -> Tensor:
    """Validation examples a class where nobody says how many: 30 %, at least 3, never more than half.

    Args:
        counts: (K,) int64, examples with a label of every class.

    Returns:
        (K,) int64; together at most 1,024, the paper's number, unless there are more classes than that.
    """
    shares = torch.minimum((0.3 * counts).round().long().clamp(min=3), counts // 2)
    total = int(shares.sum())
    return (shares * 1024 // total).clamp(min=1).minimum(shares) if total > 1024 else shares


def _shares(counts: Tensor, num_labeled: int | None, num_validation: int | None) -> tuple[Tensor, Tensor]:
    """Labelled and validation examples of every class, (K,) int64 each."""
    least = torch.ones_like(counts) if num_labeled is None else _one_each(_share(counts, num_labeled))
    rest = counts - least
    wanted = validation_shares(counts) if num_validation is None else _share(counts, num_validation)
    validation = torch.minimum(wanted, rest)
    short = 0 if num_validation is None else num_validation - int(validation.sum())
    while short:  # rounding can leave a class without enough examples: others stand in
        for c in range(len(counts)):
            if short and validation[c] < rest[c]:
                validation[c] += 1
                short -= 1
    return counts - validation if num_labeled is None else least, validation


def _require_enough(
    counts: Tensor, num_labeled: int | None, num_validation: int | None, data_set: str, names: Sequence[str]
) -> None:
    """Refuse numbers that there are not enough labelled examples for, by the names of those that were given."""
    available, classes = int(counts.sum()), len(counts)
    if (classes if num_labeled is None else num_labeled) + (
        1 if num_validation is None else num_validation
    ) <= available:
        return
    there = f"{data_set} has {available} labelled examples of {classes} classes"
    if num_labeled is None and num_validation is None:
        reason = (
            f"{there}, one each; give class {names[0]!r} at least 2, better every class: one to train on, one that "
            "validates"
        )
    elif num_labeled is None:
        reason = (
            f"data.num_validation={num_validation}: leaves less than one a class to train on, {there}; give at most "
            f"{available - classes}, or label more"
        )
    elif num_validation is None:
        reason = f"data.num_labeled={num_labeled}: leaves none to validate, {there}; lower it, or label more"
    else:
        reason = (
            f"data.num_labeled={num_labeled} and data.num_validation={num_validation}: together more than "
            f"the {available} labelled examples of {classes} classes in {data_set}; lower one of them, or label more"
        )
    raise UserError(reason)


def _require_labels(counts: Tensor, num_labeled: int | None, data_set: str, names: Sequence[str]) -> None:
    """Refuse classes that would get no label."""
    for name, count in zip(names, counts.tolist(), strict=True):
        if count == 0:
            raise UserError(
                f"data.known_classes: class {name!r} has no labelled example in {data_set}; give it one or leave it out"
            )
    available = int(counts.sum())
    if num_labeled is not None and num_labeled > available:
        raise UserError(
            f"data.num_labeled={num_labeled}: {data_set} has only {available} training examples of the known "
            "classes"
        )
    if num_labeled is not None and num_labeled < len(names):
        raise UserError(
            f"data.num_labeled={num_labeled}: class {names[-1]!r} would get no label; {data_set} "
            f"needs at least {len(names)}, one a class"
        )


def _shuffled(members: Tensor, first: Tensor | None, generator: torch.Generator) -> Tensor:
    """Rows of a class in random order, those of ``first`` before the others."""
    rows = members[torch.randperm(len(members), generator=generator)]
    if first is None:
        return rows
    before = torch.isin(rows, first)
    return torch.cat((rows[before], rows[~before]))


def _foreign_wanted(
    own: int, there: int, labeled: int, fraction: float | None, num_unlabeled: int | None
) -> int:
    """How many examples of the pool are to be foreign."""
    if num_unlabeled is not None:
        if not labeled < num_unlabeled <= own + there:
            raise UserError(
                f"data.num_unlabeled={num_unlabeled}: must be above the {labeled} labelled examples, which are "
                f"among the unlabelled ones, and at most the {own + there} there are"
            )
        return round(num_unlabeled * (there / (own + there) if fraction is None else fraction))
    return there if fraction is None else round(own * fraction / (1 - fraction))


def _require_foreign(own: int, there: int, wanted: int, fraction: float | None) -> None:
    """Refuse a share that there are not enough foreign examples for."""
    if wanted > there:
        largest = math.floor(1000 * there / (there + own)) / 1000
        raise UserError(
            f"data.foreign_fraction={fraction}: {own} unlabelled examples of the known classes need {wanted} "
            f"foreign ones, data.pool_classes have {there}; at most {largest} can be reached"
        )


def make_split(
    labels: Tensor,
    *,
    data_set: str,
    checksum: str,
    class_names: Sequence[str],
    known_classes: Sequence[int],
    pool_classes: Sequence[int],
    foreign_fraction: float | None = None,
    num_labeled: int | None,
    num_validation: int | None,
    num_unlabeled: int | None = None,
    seed: int,
    first: Tensor | None = None,
) -> Split:
    """Draw a seeded, stratified, disjoint split.

    Args:
        labels: (n,) int64, class numbers of all training examples; −1 for those that have none, other negative numbers
            for those that belong to no part.
        data_set: Its name.
        checksum: Its sha256.
        class_names: Names of all classes, for messages.
        known_classes: Classes that labelled and validation examples are drawn from.
        pool_classes: Classes that are added to the unlabelled list. Examples of yet other classes are left
            out; those without a label belong to the pool.
        foreign_fraction: Share of the unlabelled list that is of ``pool_classes``, in [0, 1), drawn class by
            class in proportion to the classes' sizes; ``None`` for all of their examples.
        num_labeled: Size of the labelled list; ``None`` for all examples with a label that do not validate.
        num_validation: Size of the validation list; ``None`` for :func:`validation_shares`.
        num_unlabeled: Size of the unlabelled list, the labelled examples among them; ``None`` for all there are.
        seed: Same seed, same split.
        first: Rows, int64, that are labelled before any others.

    Raises:
        UserError: If there are too few examples, or a class would get no label.
    """
    names = [class_names[c] for c in known_classes]
    members = [(labels == c).nonzero().flatten() for c in known_classes]
    counts = torch.tensor([len(m) for m in members])
    _require_labels(counts, num_labeled, data_set, names)
    _require_enough(counts, num_labeled, num_validation, data_set, names)
    generator = torch.Generator().manual_seed(seed)
    # Labelled and validation examples: class by class, at random, those that have to be labelled first.
    shuffled = [_shuffled(m, first, generator) for m in members]
    shares = _shares(counts, num_labeled, num_validation)
    drawn = list(zip(shuffled, *(share.tolist() for share in shares), strict=True))
    labeled = torch.cat([m[:s] for m, s, _ in drawn])
    validation = torch.cat([m[s : s + v] for m, s, v in drawn])
    # The pool: all others of the known classes and without a label, the labelled ones among them.
    pool = torch.isin(labels, torch.tensor([*known_classes, -1]))
    pool[validation] = False
    foreign = [(labels == c).nonzero().flatten() for c in pool_classes]
    there = sum(map(len, foreign))
    wanted = _foreign_wanted(int(pool.sum()), there, len(labeled), foreign_fraction, num_unlabeled)
    if num_unlabeled is not None:
        pool = _fewer(pool, labeled, num_unlabeled - wanted, generator)
    _require_foreign(int(pool.sum()), there, wanted, foreign_fraction)
    # What is foreign to them, class by class in proportion.
    for rows in _some(foreign, wanted, generator) if wanted < there else foreign:
        pool[rows] = True
    if num_labeled is None and int(pool.sum()) == len(labeled):
        raise UserError(
            f"data.num_labeled=null: every example of {data_set} has a label, which leaves no pool; give unlabelled "
            "examples, or a data.num_labeled: those beyond it are then the pool"
        )
    return Split(
        data_set, checksum, seed, labeled.sort().values, validation.sort().values, pool.nonzero().flatten()
    )


def write_split(split: Split, path: Path) -> None:
    """Write ``split.json``, whole or not at all."""
    content: dict[str, Any] = {"version": VERSION, "sha256": split.sha256()}
    content |= {k: v.tolist() if isinstance(v, Tensor) else v for k, v in asdict(split).items()}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content), encoding="utf-8")


def read_split(path: Path, data_set: str, checksum: str) -> Split:
    """Read ``split.json`` and make sure that it belongs to this data set and is whole.

    Raises:
        UserError: If it is missing, damaged or another data set's.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        lists = {part: torch.tensor(content[part], dtype=torch.int64) for part in PARTS}
        if content.get("dropped") is not None:
            lists["dropped"] = torch.tensor(content["dropped"], dtype=torch.int64)
        split = Split(content["data_set"], content["checksum"], int(content["seed"]), **lists)
        version, sha256 = content["version"], content["sha256"]
    except FileNotFoundError:
        raise UserError(f"data.split={path}: no such file; leave it out to draw a split") from None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"data.split={path}: not a split file ({type(error).__name__}: {error}); draw it again"
        ) from None
    if version != VERSION:
        raise UserError(
            f"data.split={path}: written in format {version}, this program reads format {VERSION}"
        )
    if split.sha256() != sha256:
        raise UserError(
            f"data.split={path}: its lists do not match its own sha256: the file was changed; draw it again"
        )
    hint = "draw a new split with --data.split null"
    if split.data_set != data_set:
        raise UserError(f"data.split={path}: made for {split.data_set}, but the data is {data_set}; {hint}")
    if split.checksum != checksum:
        raise UserError(
            f"data.split={path}: the examples have changed since it was drawn (added, removed or changed): bring them "
            f"back, or {hint}"
        )
    return split


def check_classes(known: Sequence[int], pool: Sequence[int], share: float | None, last: int) -> None:
    """Refuse classes that are not there, or that are asked for twice.

    Args:
        known: Numbers of those to learn.
        pool: Of those that only the pool holds.
        share: Of the pool that is to be of them, if given.
        last: The largest number there is.

    Raises:
        UserError: Naming the option.
    """
    for key, classes in (("known_classes", known), ("pool_classes", pool)):
        fine = all(0 <= c <= last for c in classes) and len(set(classes)) == len(classes)
        require(f"data.{key}", classes, fine, f"must be different numbers from 0 to {last}")
    require("data.known_classes", known, len(known) >= 2, "name at least 2 classes")
    shared = set(known) & set(pool)
    require("data.pool_classes", pool, not shared, f"{sorted(shared)} are known_classes already")
    if share is not None:
        require("data.foreign_fraction", share, 0 <= share < 1, "must be at least 0 and below 1")
        require("data.foreign_fraction", share, bool(pool), "needs data.pool_classes as well")


def check_split_classes(
    split: Split, labels: Tensor, known_classes: Sequence[int], pool_classes: Sequence[int], path: Path
) -> None:
    """Refuse a split of other classes, which would give labels that the network has no output for.

    Args:
        split: The split.
        labels: (n,) int64, class numbers of all training examples.
        known_classes: Those to learn.
        pool_classes: Those that only the pool holds.
        path: Where the split was read.

    Raises:
        UserError: Naming the options.
    """
    labelled = {*labels[split.labeled].tolist(), *labels[split.validation].tolist()}
    unknown = {*labels[split.unlabeled].tolist()} - {*known_classes, *pool_classes, -1}
    if labelled != {*known_classes} or unknown:
        raise UserError(
            f"data.split={path}: not drawn for data.known_classes={list(known_classes)} and "
            f"data.pool_classes={list(pool_classes)}; give the classes that it was drawn for"
        )
