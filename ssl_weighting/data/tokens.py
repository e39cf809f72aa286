"""Texts as words and words as word pieces: tokenised once, kept on disk, looked up by row.

A text is kept as the numbers of its words, and a table says of which pieces a word consists. Words can then be
replaced where the batch is, as UDA does before it splits them, and turned into pieces afterwards.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.progress import track
from torch import Tensor

from ssl_weighting.errors import UserError
from ssl_weighting.files import home_path, not_loaded, whole_file

FORMAT = "1"
CHUNK = 1000


@dataclass(frozen=True)
class TokenizedTexts:
    """n texts as words.

    Attributes:
        words: int32 (N,), the words of all texts in turn. Below the tokenizer's size: a word of that one piece;
            from there on a row of ``pieces``.
        counts: int16 (N,), how often the word stands in its text (at most 32,767).
        offsets: int64 (n + 1,), text i is ``words[offsets[i]:offsets[i + 1]]``.
        pieces: int32 (P,), the pieces of the words of several pieces, in turn.
        piece_offsets: int64 (m + 1,), as ``offsets``.
    """

    words: Tensor
    counts: Tensor
    offsets: Tensor
    pieces: Tensor
    piece_offsets: Tensor


def load_tokenizer(name: str) -> Any:
    """A fast tokenizer, by hub name or folder.

    Raises:
        UserError: If there is none.
    """
    from transformers import AutoTokenizer  # slow to import
    from transformers.utils import logging

    logging.set_verbosity_error()
    name = os.path.expanduser(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the libraries beneath raise whatever a damaged file makes of them
        files = "vocab.txt or tokenizer.json and config.json"
        raise not_loaded("data.tokenizer", name, error, "tokenizer", files) from None
    if not tokenizer.is_fast:
        raise UserError(
            f"data.tokenizer={name}: has no fast version, which tells where words end; give another"
        )
    return tokenizer


def unknown_share(tokens: TokenizedTexts, tokenizer: Any) -> float:
    """Share of the words, from 0 to 1, that the tokenizer has no pieces for."""
    if tokenizer.unk_token_id is None or not len(tokens.words):
        return 0.0
    return float((tokens.words == tokenizer.unk_token_id).float().mean())


def cache_folder(given: Path | None) -> Path:
    """Where tokenised texts are kept: as given, or ``ssl_weighting`` in the user's cache folder."""
    if given is not None:
        return home_path(given)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return home_path(base) / "ssl_weighting"


def digest(texts: pa.Array) -> str:
    """sha256 of a column of texts."""
    texts = texts.cast(pa.large_string())
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    result = hashlib.sha256(np.ascontiguousarray(np.diff(offsets)).data)
    if offsets[-1] > offsets[0]:
        result.update(memoryview(texts.buffers()[2])[offsets[0] : offsets[-1]])
    return result.hexdigest()


def tokenized(texts: pa.Array, tokenizer: Any, folder: Path, what: str) -> TokenizedTexts:
    """Texts as words, from the cache if they were tokenised before.

    Args:
        texts: Strings (n,), none missing.
        tokenizer: A fast tokenizer.
        folder: The cache; a file is named by what it was made of, so that it is never out of date.
        what: Name of the texts, for the progress bar.

    Raises:
        UserError: If the cache cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    key = hashlib.sha256(
        f"{FORMAT} {digest(texts)} {tokenizer.backend_tokenizer.to_str()}".encode()
    ).hexdigest()
    path = folder / f"tokens-{key[:32]}.safetensors"
    if path.is_file():
        try:
            return TokenizedTexts(**load_file(path))
        except (SafetensorError, OSError, TypeError):
            pass  # damaged: it is made again
    made = _tokenize(texts, tokenizer, what)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Several processes may be at it: each writes a file of its own, and the last one stays.
        with TemporaryDirectory(prefix=".tokens-", dir=folder) as own:
            mine = Path(own, path.name)
            with whole_file(mine) as partial:
                save_file(vars(made), partial)
            mine.rename(path)
    except OSError as error:
        raise UserError(
            f"data.cache={folder}: cannot be written ({error.strerror}); name a folder that can"
        ) from None
    return made


def _tokenize(texts: pa.Array, tokenizer: Any, what: str) -> TokenizedTexts:
    size = len(tokenizer)
    table: dict[bytes, int] = {}
    words, counts, lengths = [], [], []
    for start in track(range(0, len(texts), CHUNK), f"Tokenising {what}"):
        chunk = texts[start : start + CHUNK].to_pylist()
        encodings = tokenizer(
            chunk,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        ).encodings
        for own in _words_of(encodings, size, table):
            _, inverse, count = np.unique(own, return_inverse=True, return_counts=True)
            words.append(own)
            counts.append(count.clip(max=np.iinfo(np.int16).max)[inverse].astype(np.int16))
            lengths.append(len(own))
    pieces = [np.frombuffer(key, np.int32) for key in table]
    return TokenizedTexts(
        torch.from_numpy(np.concatenate([np.empty(0, np.int32), *words])),
        torch.from_numpy(np.concatenate([np.empty(0, np.int16), *counts])),
        _offsets(lengths),
        torch.from_numpy(np.concatenate([np.empty(0, np.int32), *pieces])),
        _offsets([len(p) for p in pieces]),
    )


def _offsets(lengths: list[int]) -> Tensor:
    return torch.from_numpy(np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64))


def _words_of(encodings: list[Any], size: int, table: dict[bytes, int]) -> Iterator[np.ndarray]:
    """Words int32 of each encoding; words of several pieces are entered into the table."""
    for encoding in encodings:
        ids = np.array(encoding.ids, dtype=np.int32)
        if not len(ids):
            yield ids
            continue
        word = np.array(encoding.word_ids, dtype=np.int64)
        first = np.flatnonzero(np.diff(word, prepend=-1))
        length = np.diff(first, append=len(ids))
        own = ids[first]
        for i in np.flatnonzero(length > 1).tolist():
            key = ids[first[i] : first[i] + length[i]].tobytes()
            own[i] = table.setdefault(key, size + len(table))
        yield own


class WordPieces:
    """Turns padded batches of words into padded batches of pieces, on their device.

    Words are numbered through all sets of texts that are added, in the order of adding.

    Args:
        tokenizer: Says which pieces stand before and after a text, and what pads.
        max_length: Most pieces of a text, those before and after included.
        keep: Which end of a longer text is kept.
    """

    def __init__(self, tokenizer: Any, max_length: int, keep: str) -> None:
        special = tokenizer("a", return_special_tokens_mask=True)
        ids, marks = special["input_ids"], special["special_tokens_mask"]
        inner = [i for i, mark in enumerate(marks) if not mark]
        self.before, self.after = ids[: inner[0]], ids[inner[-1] + 1 :]
        self.room = max_length - len(self.before) - len(self.after)
        if self.room < 1:
            raise UserError(
                f"data.max_length={max_length}: leaves no room for words; give at least {10 - self.room}"
            )
        self.keep_end, self.padding = keep == "end", int(tokenizer.pad_token_id or 0)
        self.size = len(tokenizer)
        single = torch.arange(self.size, dtype=torch.int32)
        self._pieces, self._lengths = [single], [torch.ones_like(single)]
        self._tables: dict[torch.device, tuple[Tensor, ...]] = {}

    def add(self, texts: TokenizedTexts) -> int:
        """Make a set's words known. Returns what its words of several pieces are to be raised by."""
        shift = sum(map(len, self._lengths)) - self.size
        self._pieces.append(texts.pieces)
        self._lengths.append(texts.piece_offsets.diff().to(torch.int32))
        self._tables.clear()
        return shift

    def _table(self, device: torch.device) -> tuple[Tensor, ...]:
        """All pieces, each word's number of them and its first one's place; what stands before and after a text."""
        if device not in self._tables:
            lengths = torch.cat(self._lengths).long()
            ends = [torch.tensor(piece, dtype=torch.int64) for piece in (self.before, self.after)]
            table = (torch.cat(self._pieces).long(), lengths, lengths.cumsum(0) - lengths, *ends)
            self._tables[device] = tuple(part.to(device) for part in table)
        return self._tables[device]

    def __call__(self, words: Tensor) -> dict[str, Tensor]:
        """Pieces of words.

        Args:
            words: (B, W) int32, −1 for padding, which stands on the right.

        Returns:
            ``input_ids`` and ``attention_mask``, (B, L) int64, L the length of the longest text.
        """
        pieces, lengths, offsets, before, after = self._table(words.device)
        row, nth_word = (words >= 0).nonzero(as_tuple=True)  # waits for the device
        word = words[row, nth_word].long()
        count = lengths[word]
        totals = torch.zeros(len(words), dtype=torch.int64, device=words.device).index_add_(0, row, count)
        kept = totals.clamp(max=self.room)
        total, longest = torch.stack((totals.sum(), kept.max())).tolist()  # waits again
        place = torch.arange(total, device=words.device)
        nth = torch.repeat_interleave(torch.arange(len(word), device=words.device), count, output_size=total)
        piece = pieces[place - (count.cumsum(0) - count)[nth] + offsets[word][nth]]
        row = row[nth]
        column = place - (totals.cumsum(0) - totals)[row]
        if self.keep_end:
            column = column - (totals - kept)[row]
        inside = (column >= 0) & (column < kept[row])
        front, back = len(self.before), len(self.after)
        ids = torch.full((len(words), front + longest + back + 1), self.padding, device=words.device)
        ids[:, :front] = before
        ids[row, torch.where(inside, column + front, front + longest + back)] = (
            piece  # the last column is dropped
        )
        ids = ids[:, :-1]
        if back:
            end = kept[:, None] + front + torch.arange(back, device=words.device)
            ids.scatter_(1, end, after.expand(len(words), -1))
        mask = torch.arange(ids.shape[1], device=words.device) < (kept + front + back)[:, None]
        return {"input_ids": ids.contiguous(), "attention_mask": mask.long()}
