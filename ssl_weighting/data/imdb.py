"""IMDB reviews, with UDA's twenty labels and its choice of unlabelled reviews."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ssl_weighting.data.source import Source
from ssl_weighting.data.tables import from_hub
from ssl_weighting.data.text import LabeledTexts, TextData
from ssl_weighting.data.text_files import replaced
from ssl_weighting.errors import UserError, one_line
from ssl_weighting.files import home_path

HUB = "stanfordnlp/imdb"
HUB_MEND = "give --data.root, a folder with aclImdb or with train, test and unsup as parquet"
MIN_CHARACTERS = 500
FOLDERS = {"neg": 0, "pos": 1, "unsup": -1}

# UDA's labelled reviews: the first ten of each class in its train_id_list.txt, by file name, with the start of the
# file's sha256, by which they are found in copies that have lost the names.
UDA_LABELED = {
    1: {
        9716: "01641a969991e851",
        839: "54b7c73adada72f5",
        1047: "d0cb3251403e34c0",
        1612: "1b79795927b6bca7",
        6836: "2b84cb17cbff4ac3",
        12323: "550b16022877a299",
        8710: "73c9b8b98d7a8f08",
        2659: "893af452a242fa2e",
        1404: "3579efd01ed7d672",
        4722: "3bac6a2d34c04892",
    },
    0: {
        9851: "7799d1a38fef5047",
        4681: "2b67b899cb01fd25",
        3386: "4224bc1d170edc7f",
        6068: "46a9936214a0e109",
        11186: "931fad5008516147",
        362: "3823f0d842db40e5",
        135: "281604b6940f02d9",
        2461: "e6232d3ee65676c4",
        3728: "abc355b2ef924629",
        11575: "5f890543ed681d23",
    },
}

HTML = (
    *((r"<br />", " "), (r"&quot;", '"'), (r"<p>", " "), (r"<a href=[^>]*>", ""), (r"</a>", "")),
    (r"\\n", " "),  # the two characters
)
"""What stands instead of HTML in reviews, as UDA's code cleans them (960684e, text/utils/imdb_format.py)."""


class Imdb(TextData):
    """IMDB: 25,000 training and 25,000 test reviews of two classes, and 50,000 unsupervised ones.

    Maas et al., "Learning Word Vectors for Sentiment Analysis", 2011. The training list is UDA's: the training
    reviews and those unsupervised ones that have 500 characters or more once cleaned, 69,972 in all.

    Args:
        root: Folder with ``aclImdb``, or with parquet files of the columns ``text``, ``label`` (0 negative, 1
            positive) and, if known, ``id``, whose names begin with ``train``, ``test`` and ``unsup``. Default: the
            Hugging Face hub.
        labeled: ``uda``: its twenty reviews (Ren et al. use as many), which needs ``num_labeled: 20``. ``random``:
            drawn by the split's seed.
        num_labeled: Labelled reviews.
        num_validation: Validation reviews.
        kwargs: See :class:`~ssl_weighting.data.text.TextData`, and :class:`~ssl_weighting.data.module.SSLData`.
    """

    name = "imdb"
    all_class_names = ("negative", "positive")
    replacements = HTML

    def __init__(
        self,
        root: Path | None = None,
        labeled: Literal["uda", "random"] = "uda",
        num_labeled: int | None = 20,
        num_validation: int | None = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_labeled=num_labeled, num_validation=num_validation, **kwargs)
        if labeled == "uda" and num_labeled != 20:
            raise UserError(
                f"data.num_labeled={num_labeled}: UDA labels 20; give --data.labeled random as well"
            )
        if labeled == "uda" and self.known_classes != [0, 1]:
            raise UserError(f"data.known_classes={self.known_classes}: must be [0, 1] with UDA's labels")
        self.root = None if root is None else home_path(root)
        self.labeled = labeled
        self._rows: dict[tuple[int, int | str], int] = {}

    def read(self, train: bool) -> LabeledTexts:
        """See :meth:`TextData.read`."""
        parts = [self._part("train"), self._part("unsup")] if train else [self._part("test")]
        table = pa.concat_tables(parts).combine_chunks()
        cleaned = clean(table["text"].combine_chunks())
        if train:
            long = pc.greater_equal(pc.utf8_length(cleaned), MIN_CHARACTERS)
            kept = pc.or_(pc.greater_equal(table["label"].combine_chunks(), 0), long)
            table, cleaned = table.filter(kept), cleaned.filter(kept)
            self._rows = _by_identity(table)
        labels = torch.from_numpy(table["label"].to_numpy().copy())
        return LabeledTexts(cleaned, labels)

    def labeled_first(self, train: Source) -> Tensor | None:
        """Rows of UDA's twenty reviews."""
        if self.labeled != "uda":
            return None
        rows = []
        for label, wanted in UDA_LABELED.items():
            for number, start in wanted.items():
                row = self._rows.get((label, number), self._rows.get((label, start)))
                if row is None:
                    raise UserError(
                        f"data.labeled=uda: {self.all_class_names[label]} review {number} is not in the training "
                        "data; give the original reviews, or --data.labeled random"
                    )
                rows.append(row)
        return torch.tensor(rows)

    def _part(self, split: str) -> pa.Table:
        """``text``, ``label`` int64 and ``id`` int64, null where unknown."""
        if self.root is None:
            table = from_hub(HUB, {"unsup": "unsupervised"}.get(split, split), "data.root=null", HUB_MEND)
            label = pc.fill_null(pc.index_in(table["label"], pa.array(list(FOLDERS)[:2])), -1)
            table = table.set_column(table.column_names.index("label"), "label", label)
        else:
            table = self._local(split)
        ids = table["id"] if "id" in table.column_names else pa.nulls(len(table))
        columns = (
            table["text"].cast(pa.large_string()),
            table["label"].cast(pa.int64()),
            ids.cast(pa.int64()),
        )
        return pa.table(dict(zip(("text", "label", "id"), columns, strict=True)))

    def _local(self, split: str) -> pa.Table:
        assert self.root is not None
        for folder in (self.root, self.root / "plain_text"):
            files = sorted(folder.glob(f"{split}*.parquet"))
            if files:
                break
        try:
            if files:
                table = pa.concat_tables([pq.read_table(file) for file in files])
                if missing := {"text", "label"} - {*table.column_names}:
                    raise UserError(
                        f"data.root={self.root}: {files[0].name} lacks the column {missing.pop()!r}"
                    )
                return table
            for folder in (self.root, self.root / "aclImdb"):
                if (folder / "train" / "pos").is_dir():
                    return _read_folders(folder, split)
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise UserError(f"data.root={self.root}: cannot be read ({one_line(error)[:160]})") from None
        raise UserError(
            f"data.root={self.root}: holds neither {split}*.parquet nor aclImdb; name the folder that does, or leave "
            "it out to use the Hugging Face hub"
        )


def clean(texts: pa.Array) -> pa.Array:
    """Reviews without HTML; see :data:`HTML`."""
    return replaced(texts, HTML)


def _by_identity(table: pa.Table) -> dict[tuple[int, int | str], int]:
    """Rows by class and id, or by class and the start of the sha256 where ids are unknown; the first of equals."""
    labels = table["label"].to_pylist()
    count = sum(label >= 0 for label in labels)  # the labelled ones come first
    part = table.slice(0, count)
    identities: list[int | str] = part["id"].to_pylist()
    if part["id"].null_count:
        identities = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in part["text"].to_pylist()]
    rows = list(zip(labels[:count], identities, range(count), strict=True))
    return {(label, identity): row for label, identity, row in reversed(rows)}


def _read_folders(folder: Path, split: str) -> pa.Table:
    """Reviews of ``aclImdb``, class by class in the order of their ids."""
    texts, labels, ids = [], [], []
    for name, label in FOLDERS.items():
        if (name == "unsup") != (split == "unsup"):
            continue
        files = (folder / ("test" if split == "test" else "train") / name).glob("*_*.txt")
        for number, path in sorted((int(path.stem.split("_")[0]), path) for path in files):
            texts.append(path.read_bytes().decode("utf-8"))
            labels.append(label)
            ids.append(number)
    if not texts:
        raise UserError(f"data.root={folder}: has no reviews of {split}; get it whole")
    return pa.table({"text": pa.array(texts, pa.large_string()), "label": labels, "id": ids})
