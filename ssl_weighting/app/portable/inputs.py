"""Examples as a person has them, as the arrays that an exported model takes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssl_weighting.errors import UserError, named, one_line

TOKENIZER = "tokenizer.json"
BATCH = {"images": 64, "arrays": 256, "texts": 32}
"""Examples that are computed at once."""

Batches = Iterator[tuple[np.ndarray, list[np.ndarray]]]
"""Rows (B,) int64 of the examples, and what the model takes for them."""


@dataclass(frozen=True)
class InputOptions:
    """What an exported model takes, and how examples become that.

    Attributes:
        kind: ``images``: files or pixels; ``arrays``: numbers alone; ``texts``.
        shape: Of one example's array; of texts, nothing.
        dtype: Of that array; of texts ``int64``.
        levels: Of images, see :func:`~ssl_weighting.image_pixels.decode`.
        replacements: Of texts, see :class:`~ssl_weighting.data.text.TextData`.
        max_length: Of texts, most word pieces.
    """

    kind: Literal["images", "arrays", "texts"]
    shape: tuple[int, ...] = ()
    dtype: str = "int64"
    levels: tuple[float, float] | None = None
    replacements: tuple[tuple[str, str], ...] = ()
    max_length: int = 0

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> InputOptions:
        """From what :meth:`to_json` gives."""
        levels = content["levels"]
        return cls(
            content["kind"],
            tuple(map(int, content["shape"])),
            np.dtype(content["dtype"]).name,
            None if levels is None else (float(levels[0]), float(levels[1])),
            tuple((str(pattern), str(instead)) for pattern, instead in content["replacements"]),
            int(content["max_length"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def batches(self, examples: Any, folder: Path) -> tuple[int, Batches]:
        """Examples of any number, in batches of what the model takes.

        Args:
            examples: A list of texts; of paths of images; or an array or tensor (n, ...).
            folder: The exported folder, for its tokenizer.

        Returns:
            n, and the batches.

        Raises:
            UserError: If they are something else.
        """
        if isinstance(examples, (str, os.PathLike)):
            raise UserError(
                f"{named('examples', examples)}: one name; an exported model takes a list: [{str(examples)!r}]"
            )
        if self.kind == "texts":
            return self._texts(examples, folder)
        if _are_paths(examples):
            if self.kind != "images":
                raise UserError(f"examples: {len(examples)} names; this model takes {self.said()}")
            return len(examples), self._images([Path(os.path.expanduser(path)) for path in examples])
        return self._arrays(examples)

    def said(self) -> str:
        """What the model takes, in words."""
        if self.kind == "texts":
            return "a list of texts"
        array = f"{self.dtype} of shape ({', '.join(map(str, ('n', *self.shape)))})"
        return f"a list of paths, or {array}" if self.kind == "images" else array

    def _arrays(self, examples: Any) -> tuple[int, Batches]:
        try:
            array = np.asarray(examples)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"examples: this model takes {self.said()} ({one_line(error)[:160]})") from None
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        if array.dtype != self.dtype or array.shape[1:] != self.shape:
            shape = ", ".join(map(str, ("n", *array.shape[1:])))
            raise UserError(f"examples: {array.dtype} of shape ({shape}); this model takes {self.said()}")
        if np.issubdtype(array.dtype, np.floating):
            bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
            if len(bad):
                raise UserError(f"examples: row {bad[0]} holds NaN or infinity; repair it or leave it out")
        return len(array), ((rows, [array[rows]]) for rows in self._rows(np.arange(len(array))))

    def _images(self, paths: Sequence[Path]) -> Batches:
        from PIL import Image

        from ssl_weighting.image_pixels import decode, quiet

        Image.init()  # finding the decoders is not safe among threads

        def pixels(path: Path) -> np.ndarray:
            try:
                return decode(path, self.shape[-1], self.levels)
            except Exception as error:  # a damaged file can raise nearly anything
                raise UserError(
                    f"examples: {path} cannot be read ({one_line(error)[:160]}); repair it or leave it out"
                ) from None

        with quiet(), ThreadPoolExecutor(os.cpu_count()) as threads:
            for rows in self._rows(np.arange(len(paths))):
                yield rows, [np.stack(list(threads.map(pixels, [paths[row] for row in rows])))]

    def _texts(self, examples: Any, folder: Path) -> tuple[int, Batches]:
        texts = list(examples)
        if not all(text is None or isinstance(text, str) for text in texts):
            raise UserError("examples: not all of them are texts; this model takes a list of texts")
        return len(texts), self._pieces([self._cleaned(text or "") for text in texts], folder)

    def _cleaned(self, text: str) -> str:
        text = text.strip()
        for pattern, instead in self.replacements:
            text = re.sub(pattern, lambda _: instead, text)  # noqa: B023  (called at once)
        return text

    def _pieces(self, texts: list[str], folder: Path) -> Batches:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        shortest_first = np.argsort([len(text) for text in texts], kind="stable")
        for rows in self._rows(shortest_first):
            found = tokenizer.encode_batch([texts[row] for row in rows])
            ids, mask = ([getattr(one, part) for one in found] for part in ("ids", "attention_mask"))
            yield rows, [np.array(ids, np.int64), np.array(mask, np.int64)]

    def _rows(self, order: np.ndarray) -> Iterator[np.ndarray]:
        size = BATCH[self.kind]
        return (order[start : start + size] for start in range(0, len(order), size))


def _are_paths(examples: Any) -> bool:
    return isinstance(examples, (list, tuple)) and all(isinstance(e, (str, os.PathLike)) for e in examples)
