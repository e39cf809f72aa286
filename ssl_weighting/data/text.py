"""Texts: any CSV, JSON lines, parquet file or Hugging Face data set with a column of texts and one of labels."""

from __future__ import annotations

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from ssl_weighting.augment.tf_idf import TfIdf
from ssl_weighting.data.duplicates import Contents, find_copies, of_texts, without_copies
from ssl_weighting.data.labels import label_names, numbers_of
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.paraphrases import read_paraphrases
from ssl_weighting.data.remembered import NewExamples, remembered
from ssl_weighting.data.source import Source
from ssl_weighting.data.tables import Column, read_columns, read_table
from ssl_weighting.data.text_files import look_for_empty, replaced
from ssl_weighting.data.tokens import (
    TokenizedTexts,
    WordPieces,
    cache_folder,
    digest,
    load_tokenizer,
    tokenized,
    unknown_share,
)
from ssl_weighting.errors import DataWarning, UserError, named
from ssl_weighting.protocols import Inputs, View

MOST_UNKNOWN = 0.3
"""Share of words unknown to the tokenizer above which something is wrong."""


class LabeledTexts(NamedTuple):
    """Texts and their labels.

    Attributes:
        texts: Strings (n,).
        labels: (n,) int64; −1 where unknown.
    """

    texts: pa.Array
    labels: Tensor


class TextSource:
    """A :class:`~ssl_weighting.data.source.Source` of tokenised texts.

    Args:
        data: Texts and labels.
        tokens: The texts as words.
        shift: What words of several pieces are raised by.
        first: The lowest such word.
        room: Most words of a text that are handed out, from the end that is kept.
        keep_end: Whether that is the right one.
        paraphrases: A source with the paraphrase of every row, or ``None``.
    """

    def __init__(
        self,
        data: LabeledTexts,
        tokens: TokenizedTexts,
        shift: int,
        first: int,
        room: int,
        keep_end: bool,
        paraphrases: TextSource | None = None,
    ) -> None:
        self.data, self.tokens, self.labels = data, tokens, data.labels
        self.shift, self.first, self.room, self.keep_end = shift, first, room, keep_end
        self.paraphrases = paraphrases
        self.tf_idf: TfIdf | None = None

    def fetch(self, rows: Tensor) -> dict[str, Tensor]:
        """See :class:`~ssl_weighting.data.source.Source`.

        Returns:
            ``words`` int32 (B, W), −1 for padding on the right; ``rates`` float32 (B, W), the probabilities with
            which they are replaced, if they are known; ``paraphrase`` int32 (B, W'), if there are paraphrases.
        """
        start, stop = self.tokens.offsets[rows], self.tokens.offsets[rows + 1]
        lengths = stop - start
        kept = lengths.clamp(max=self.room)
        start = stop - kept if self.keep_end else start
        column = torch.arange(int(kept.max()))
        inside = column < kept[:, None]
        place = torch.where(inside, start[:, None] + column, 0)
        words = self.tokens.words[place]
        batch = {"words": torch.where(inside, words + self.shift * (words >= self.first), -1)}
        if self.tf_idf is not None:
            batch["rates"] = self.tf_idf.rates(words, self.tokens.counts[place], rows, lengths)
        if self.paraphrases is not None:
            batch["paraphrase"] = self.paraphrases.fetch(rows)["words"]
        return batch

    def checksum(self) -> str:
        """See :class:`~ssl_weighting.data.source.Source`: of texts and labels, whatever the tokenizer."""
        result = hashlib.sha256(digest(self.data.texts).encode())
        result.update(self.labels.contiguous().numpy().data)
        return result.hexdigest()

    def identity(self) -> str:
        """sha256 over the texts' word pieces, and over how much of a text is handed out."""
        result = hashlib.sha256(f"texts {self.room} {self.keep_end}".encode())
        for part in (self.tokens.words, self.tokens.offsets, self.tokens.pieces, self.tokens.piece_offsets):
            result.update(part.contiguous().numpy().data)
        return result.hexdigest()

    def identity_of_views(self) -> str:
        """sha256 over what augmented views are made of besides the texts: paraphrases, or nothing."""
        return "" if self.paraphrases is None else self.paraphrases.identity()

    def describe(self, rows: Tensor) -> list[str]:
        """See :class:`~ssl_weighting.data.source.Source`: the texts."""
        texts: list[str] = self.data.texts.take(pa.array(rows.numpy())).to_pylist()
        return texts


class TextData(SSLData):
    """A data set of texts for a pretrained encoder. A subclass says where texts and labels come from.

    Texts are tokenised once and kept in ``cache``. They travel as words, so that words can be replaced before
    they are split into pieces, and batches are padded to their longest text. Augmentations, by name:

    - ``weak``: the text as it is;
    - ``tf_idf``: UDA's word replacement, counted on the unlabelled texts;
    - ``back_translation``: the text's paraphrase.

    Args:
        tokenizer: Hub name or folder; on the command line, default is ``model.backbone.name``.
        max_length: Most word pieces of a text, [CLS] and [SEP] included.
        keep: Which end of a longer text is kept.
        replace: Share of the words that ``tf_idf`` replaces (UDA's authors: 0.7).
        paraphrases: File of paraphrases of the training texts, see ``ssl-weighting paraphrase``: parquet with the
            columns ``text`` and ``paraphrase``, or text with a paraphrase a line, in the order of the training texts.
        test_subset: Test on so many of the test texts, drawn once and for all; default all.
        cache: Folder for tokenised texts; default ``ssl_weighting`` in the user's cache folder.
        kwargs: See :class:`~ssl_weighting.data.module.SSLData`.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        max_length: int = 128,
        keep: Literal["end", "start"] = "end",
        replace: float = 0.7,
        paraphrases: Path | None = None,
        test_subset: int | None = None,
        cache: Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_length < 3:
            raise UserError(f"data.max_length={max_length}: must be at least 3")
        if not 0 < replace <= 1:
            raise UserError(f"data.replace={replace}: must be above 0 and at most 1")
        if test_subset is not None and test_subset < 1:
            raise UserError(f"data.test_subset={test_subset}: must be at least 1; null for all test texts")
        self.tokenizer_name, self.max_length, self.keep, self.replace = tokenizer, max_length, keep, replace
        self.paraphrase_file, self.test_subset, self.cache = paraphrases, test_subset, cache_folder(cache)
        self.augmentations = {
            "weak": lambda inputs: inputs,
            "tf_idf": self._replaced,
            "back_translation": _paraphrased,
        }
        self._tokenizer: Any = None
        self._word_pieces: WordPieces | None = None
        self._tf_idf: TfIdf | None = None
        self._loaded: dict[bool, TextSource] = {}

    text_column = "text"
    """Column of the texts in tables."""
    replacements: tuple[tuple[str, str], ...] = ()
    """What is replaced in texts before they are tokenised, in turn: a regular expression, and what stands instead."""

    @abstractmethod
    def read(self, train: bool) -> LabeledTexts:
        """All training (or test) texts.

        Raises:
            UserError: If they are not there, or damaged.
        """

    @property
    def vocabulary_size(self) -> int | None:
        """Word pieces that the tokenizer knows; ``None`` before texts are loaded."""
        return None if self._tokenizer is None else len(self._tokenizer)

    def prepare_data(self) -> None:
        """Read and tokenise on one process a node, before all of them load."""
        if self.memory is None:
            self.load(train=True)

    def load(self, train: bool) -> TextSource:
        """See :meth:`SSLData.load`. What was loaded is kept."""
        if train not in self._loaded:
            self._loaded[train] = self._load(train)
        return self._loaded[train]

    def _load(self, train: bool) -> TextSource:
        data = self.read(train)
        paraphrases = None
        if train and self.paraphrase_file is not None:
            texts = read_paraphrases(self.paraphrase_file, data.texts)
            paraphrases = self._source(LabeledTexts(texts, data.labels), "paraphrases")
        source = self._source(data, "training texts" if train else "test texts")
        source.paraphrases = paraphrases
        return source

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded when it is first asked for.

        Raises:
            UserError: If none is named, or it is not there.
        """
        if self._tokenizer is None:
            if self.tokenizer_name is None:
                raise UserError("data.tokenizer: missing; give the encoder's hub name or folder")
            self._tokenizer = load_tokenizer(self.tokenizer_name)
        return self._tokenizer

    def _source(self, data: LabeledTexts, what: str) -> TextSource:
        if self._word_pieces is None:
            self._word_pieces = WordPieces(self.tokenizer, self.max_length, self.keep)
        tokens = tokenized(data.texts, self.tokenizer, self.cache, what)
        unknown = unknown_share(tokens, self.tokenizer)
        if unknown > MOST_UNKNOWN:
            warnings.warn(
                f"data.tokenizer={self.tokenizer_name}: does not know {unknown:.0%} of the words of the {what}, which "
                "all look the same to the encoder; give the encoder's own tokenizer, or an encoder for this language",
                DataWarning,
                stacklevel=2,
            )
        pieces = self._word_pieces
        return TextSource(data, tokens, pieces.add(tokens), pieces.size, pieces.room, pieces.keep_end)

    def setup(self, stage: str | None = None) -> None:
        """Load, tokenise and split the data, once; count the unlabelled words."""
        super().setup(stage)
        if "unlabeled" not in self.sets:
            return
        unlabeled = self.sets["unlabeled"]
        source = unlabeled.source
        assert isinstance(source, TextSource)
        if source.tf_idf is None:
            tokens = source.tokens
            source.tf_idf = self._tf_idf = TfIdf(
                tokens.words, tokens.counts, tokens.offsets, unlabeled.rows, self.replace
            )

    def _setup_test(self) -> None:
        super()._setup_test()
        test = self.sets["test"]
        if self.test_subset is None or self.test_subset == len(test):
            return
        if self.test_subset > len(test):
            raise UserError(f"data.test_subset={self.test_subset}: there are only {len(test)} test texts")
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
        chosen = order[: self.test_subset].sort().values
        test.rows, test.labels = test.rows[chosen], test.labels[chosen]

    def read_new(self, where: Path, key: str = "--on") -> NewExamples:
        """A table with a column of texts; see :meth:`SSLData.read_new`."""
        wanted = Column(self.text_column, "name the column of the texts with --data.text_column")
        (texts,) = read_columns(where, named(key, where), (wanted,))
        if not len(texts):
            raise UserError(f"{named(key, where)}: has no rows")
        look_for_empty(pa.chunked_array([texts]), named(key, where))
        source = self.source_of(texts)
        return NewExamples(texts.to_pylist(), torch.arange(len(texts)), source)

    def source_of(self, examples: Any) -> Source:
        """Texts, n of them; see :meth:`SSLData.source_of`."""
        try:
            texts = pa.array(examples, pa.large_string())
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise UserError(f"examples: {self.name} takes texts ({error})") from None
        texts = self.cleaned(pc.fill_null(texts, ""))
        return self._source(LabeledTexts(texts, torch.full((len(texts),), -1)), "texts to predict")

    def cleaned(self, texts: pa.Array) -> pa.Array:
        """Texts as the encoder is to see them: without blanks at their ends, and with ``replacements`` made."""
        return replaced(texts, self.replacements)

    def view(self, raw: Inputs, steps: View) -> Inputs:
        """See :meth:`SSLData.view`."""
        for step in steps:
            if isinstance(step, nn.Module) and type(step).__module__.startswith("ssl_weighting.augment."):
                raise UserError(
                    f"model.algorithm: {type(step).__name__} augments images, and {self.name} holds texts; "
                    "give --model.algorithm.strong [tf_idf]"
                )
        return super().view(raw, steps)

    def normalise(self, inputs: Inputs) -> Inputs:
        """Words as word pieces: ``input_ids`` and ``attention_mask``, (B, L) int64."""
        assert self._word_pieces is not None
        return self._word_pieces(inputs["words"])

    def _replaced(self, inputs: Inputs) -> Inputs:
        assert self._tf_idf is not None
        return {**inputs, "words": self._tf_idf.replace(inputs["words"], inputs["rates"])}


def _paraphrased(inputs: Inputs) -> Inputs:
    if "paraphrase" not in inputs:
        raise UserError(
            "model.algorithm wants back_translation, and there are no paraphrases; give --data.paraphrases FILE "
            "(`ssl-weighting paraphrase` makes one), or --model.algorithm.strong [tf_idf]"
        )
    return {"words": inputs["paraphrase"]}


class Text(TextData):
    """Your own texts. Rows with an empty label are the unlabelled pool.

    Files end in ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` or ``.parquet``, all but the last with ``.gz``, ``.bz2``,
    ``.zst`` or ``.lz4`` behind it where they are compressed; a name that is no file is one of the Hugging Face hub, of
    which the split is taken that each argument is named by. See :mod:`ssl_weighting.data.labels` for what a label
    means, and :mod:`ssl_weighting.data.text_files` for how texts are read; what is read
    otherwise than it stands there is said.

    Args:
        train: Training texts.
        test: Test texts; default those of the hub, or none with files.
        text_column: Column of the texts.
        label_column: Column of the labels: numbers or words, of any number of classes.
        num_labeled: Labelled examples; default all that have a label and do not validate.
        num_validation: Validation examples; default a share of those that have a label.
        kwargs: See :class:`TextData`, and :class:`~ssl_weighting.data.module.SSLData`.
    """

    name = "text"

    def __init__(
        self,
        train: str,
        test: str | None = None,
        text_column: str = "text",
        label_column: str = "label",
        num_labeled: int | None = None,
        num_validation: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.train_name, self.text_column, self.label_column = train, text_column, label_column
        self.test_name = train if test is None and not Path(train).suffix else test
        self.has_test = self.test_name is not None
        known = remembered()
        if known is None:
            self._train = self._read("train", train)
            # The network has an output for each class: they are needed now.
            self.all_class_names = label_names(
                self._train[label_column].combine_chunks(), f"data.train={train}: the column {label_column!r}"
            )
        else:
            self.all_class_names = tuple(known["class_names"])
        super().__init__(num_labeled=num_labeled, num_validation=num_validation, **kwargs)

    def distinct_labels(self) -> Tensor:
        """Labels of the training texts, (n,) int64, as a split is drawn by them; nothing is tokenised for it."""
        train = of_texts(*self.read(train=True))
        test = of_texts(*self.read(train=False)) if self.has_test else None
        copies = find_copies(train, test, range(len(self.all_class_names)))
        return without_copies(train.labels, copies, train)

    def contents(self, source: Source) -> Contents | None:
        """See :class:`~ssl_weighting.data.module.SSLData`."""
        assert isinstance(source, TextSource)
        return of_texts(source.data.texts, source.labels)

    def _read(self, split: str, name: str, known: Sequence[str] | None = None) -> pa.Table:
        table = read_table(name, split, self.text_column, self.label_column, known=known)
        look_for_empty(table[self.text_column], f"data.{split}={name}")
        return table

    def read(self, train: bool) -> LabeledTexts:
        """See :meth:`TextData.read`."""
        if train:
            table, key = self._train, f"data.train={self.train_name}"
        else:
            assert self.test_name is not None
            table, key = (
                self._read("test", self.test_name, self.all_class_names),
                f"data.test={self.test_name}",
            )
        labels = numbers_of(table[self.label_column].combine_chunks(), self.all_class_names, key)
        return LabeledTexts(self.cleaned(table[self.text_column].combine_chunks()), labels)
