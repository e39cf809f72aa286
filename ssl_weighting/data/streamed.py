"""A pool of images that streams: WebDataset shards, parquet files, a data set on the Hugging Face hub."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ssl_weighting.data.duplicates import Contents
from ssl_weighting.data.images import ImageFiles, Images
from ssl_weighting.data.source import Source
from ssl_weighting.errors import UserError, one_line
from ssl_weighting.files import home_path
from ssl_weighting.image_pixels import (
    DeepImageError,
    as_image,
    decode,
    decoded_or_grey,
    quiet,
    thumbnail,
)

BUILDERS = {".tar": "webdataset", ".parquet": "parquet"}


@dataclass
class _Cursor:
    """A reader's place in the stream: what it read last, by number of the block, and how it goes on."""

    blocks: dict[int, list[Any]]
    rest: Iterator[Any]
    next: int


class StreamReader:
    """Random access to a stream, cheap where it is asked for in rising blocks.

    Up to three places are remembered, one for each of a run's streams of batches, with two blocks of encoded examples
    each; any other place means to begin again and skip.

    Args:
        stream: A Hugging Face ``IterableDataset`` of images not yet decoded: ``bytes`` or ``path`` in ``column``.
        column: That of the images.
        size: Examples of the stream that belong to the pool: its first ones.
        block: Examples that are read together.
        what: What the stream is, for messages: key and value.
    """

    def __init__(self, stream: Any, column: str, size: int, block: int, what: str) -> None:
        self.stream, self.column, self.size, self.block, self.what = stream, column, size, block, what
        self._cursors: list[_Cursor] = []
        self._process = os.getpid()

    def __getitem__(self, position: int) -> bytes:
        """An encoded image; nothing, where the example has none.

        Raises:
            UserError: If the stream ends before it, or names files instead of holding images.
        """
        number, offset = divmod(position, self.block)
        image = self._block(number)[offset] or {"bytes": b"", "path": None}
        if image["bytes"] is None:
            raise UserError(
                f"{self.what}: example {position} is the name of a file ({image['path']}); give a stream of images"
            )
        return bytes(image["bytes"])

    def _block(self, number: int) -> list[Any]:
        if self._process != os.getpid():  # a data worker must not read on in its parent's open files
            self._cursors, self._process = [], os.getpid()
        cursor = next((c for c in self._cursors if number in c.blocks), None)
        if cursor is None:
            cursor = next((c for c in self._cursors if c.next == number), None)
            if cursor is None:
                # iter(), unlike a loop over the stream, does not deal the examples out to data workers
                rest = self.stream.skip(number * self.block).iter(self.block)
                cursor = _Cursor({}, rest, number)
                self._cursors = [*self._cursors[-2:], cursor]
            self._read_on(cursor)
        self._cursors.sort(key=lambda other: other is cursor)  # the last is the one used last
        return cursor.blocks[number]

    def _read_on(self, cursor: _Cursor) -> None:
        first = cursor.next * self.block
        wanted = min(self.block, self.size - first)
        examples: list[Any] = next(cursor.rest, {self.column: []})[self.column]
        if len(examples) < wanted:
            there = first + len(examples)
            raise UserError(
                f"{self.what}: ends after {there} examples; give --data.pool_size {there}, or less"
            )
        cursor.blocks = dict(list(cursor.blocks.items())[-1:]) | {cursor.next: examples}
        cursor.next += 1


class LabeledAndStreamed:
    """A :class:`~ssl_weighting.data.source.Source`: images with labels, and after them those of a stream.

    Args:
        given: The first ones.
        reader: The others.
        identity: What tells the stream from others.
    """

    def __init__(self, given: ImageFiles, reader: StreamReader, identity: str) -> None:
        self.given, self.reader, self.stream, self.image_size = given, reader, identity, given.size
        self.labels = torch.cat([given.labels, torch.full((reader.size,), -1)])

    def fetch(self, rows: Tensor) -> Tensor:
        """Images uint8 (B, 3, size, size). A damaged one is grey, with a warning: a long run goes on."""
        images = torch.empty((len(rows), 3, self.image_size, self.image_size), dtype=torch.uint8)
        known = rows < len(self.given.labels)
        if known.any():
            images[known] = self.given.fetch(rows[known])
        order = rows.argsort()  # so that a block is read once
        for place in order[int(known.sum()) :].tolist():
            position = int(rows[place]) - len(self.given.labels)
            what = f"{self.reader.what}: example {position}"
            images[place] = decoded_or_grey(
                BytesIO(self.reader[position]), self.image_size, what, self.given.levels
            )
        return images

    def checksum(self) -> str:
        """sha256 over that of the labelled files, the stream's identity and its length; the stream is not read."""
        return hashlib.sha256(
            f"{self.given.checksum()} {self.stream} {self.reader.size}".encode()
        ).hexdigest()

    def identity(self) -> str:
        """sha256 as that of :meth:`checksum`, but over what the labelled files' pixels are made of."""
        own = f"{self.given.identity()} {self.stream} {self.reader.size}"
        return hashlib.sha256(own.encode()).hexdigest()

    def describe(self, rows: Tensor) -> list[str]:
        """The labelled files' paths; of a streamed example its number in the stream, from 0."""
        return self._with_numbers(rows, self.given.describe)

    @property
    def folder(self) -> str:
        """See :class:`~ssl_weighting.data.images.ImageFiles`: of the labelled files."""
        return self.given.folder

    def names(self, rows: Tensor) -> list[str]:
        """See :meth:`describe`; the paths below ``folder``."""
        return self._with_numbers(rows, self.given.names)

    def _with_numbers(self, rows: Tensor, paths_of: Callable[[Tensor], list[str]]) -> list[str]:
        first = len(self.given.labels)
        paths = iter(paths_of(rows[rows < first]))
        return [
            next(paths) if row < first else f"example {row - first} of the stream" for row in rows.tolist()
        ]

    def thumbnails(self, rows: Tensor, side: int) -> list[Image.Image]:
        """See :class:`~ssl_weighting.data.images.ImageFiles`; a damaged one is grey."""
        first, images = len(self.given.labels), {}
        for row in sorted(set(rows.tolist())):  # in order, so that a block is read once
            if row < first:
                (images[row],) = self.given.thumbnails(torch.tensor([row]), side)
                continue
            try:
                with quiet():
                    images[row] = thumbnail(BytesIO(self.reader[row - first]), side, self.given.levels)
            except UserError:  # the stream itself ends early, say
                raise
            except Exception:  # a damaged file can raise nearly anything
                images[row] = as_image(self.fetch(torch.tensor([row]))[0])
        return [images[row] for row in rows.tolist()]


class StreamedImages(Images):
    """Few images with labels in files, and a pool that is read as a stream, never kept.

    The stream's first ``pool_size`` examples come after those that :class:`~ssl_weighting.data.images.Images` would have
    in the pool. An example is known by its number in the stream: files must keep their names, order and contents.
    Each epoch goes through the stream in its own order, block by block, and shuffles within each: what looks alike should
    not lie together in the files. Every process and data worker reads all of the stream and decodes its own part. To go
    on with a run, the stream is read up to where it was.

    Args:
        labeled: See :class:`~ssl_weighting.data.images.Images`.
        pool: A pattern of files that end in .tar (WebDataset shards) or .parquet, such as ``shards/*.tar``, in the order
            of their names; or a name on the Hugging Face hub.
        pool_size: How many examples of it, at least 1.
        pool_split: Of a data set on the hub.
        image_column: Default: the first that holds images.
        block: Examples of the stream that are kept, encoded, and shuffled.
        kwargs: See :class:`~ssl_weighting.data.images.Images`.

    Raises:
        UserError: If there is no such stream, or no images in it.
    """

    name = "streamed_images"

    def __init__(
        self,
        labeled: Path,
        pool: str,
        pool_size: int,
        pool_split: str = "train",
        image_column: str | None = None,
        block: int = 4096,
        **kwargs: Any,
    ) -> None:
        for key, value in (("pool_size", pool_size), ("block", block)):
            if value < 1:
                raise UserError(f"data.{key}={value}: must be at least 1")
        self.pool, self.pool_size, self.pool_split = pool, pool_size, pool_split
        self.image_column = image_column
        super().__init__(labeled, **kwargs)
        self.pool_block = block

    def load(self, train: bool) -> Source:  # type: ignore[override]  # not all of it are files
        """The labelled images, by name, then the stream; or all test images."""
        given: ImageFiles = super().load(train)
        if not train:
            return given
        stream, identity = _opened(self.pool, self.pool_split)
        column = self.image_column or _image_column(stream, self.pool)
        if column not in stream.column_names:
            raise UserError(
                f"data.image_column={column}: data.pool={self.pool} has the columns {', '.join(stream.column_names)}"
            )
        import datasets

        assert self.pool_block is not None
        encoded = stream.cast_column(column, datasets.Image(decode=False))
        reader = StreamReader(encoded, column, self.pool_size, self.pool_block, f"data.pool={self.pool}")
        try:
            reader[0]
        except UserError:
            raise
        except Exception as error:  # whatever Arrow makes of a column of other things
            raise UserError(
                f"data.image_column={column}: holds no images ({one_line(error)[:160]})"
            ) from None
        _refuse_deep(reader, given)
        return LabeledAndStreamed(given, reader, identity)

    def contents(self, source: Source) -> Contents | None:
        """See :class:`~ssl_weighting.data.module.SSLData`: the files alone; the stream is not read for this."""
        return super().contents(source.given if isinstance(source, LabeledAndStreamed) else source)


def _refuse_deep(reader: StreamReader, given: ImageFiles) -> None:
    """The range of a stream's deep images cannot be found by looking at all of them."""
    try:
        with quiet():
            decode(BytesIO(reader[0]), given.size, given.levels)
    except DeepImageError:
        raise UserError(
            f"{reader.what}: its images hold more than 8 bits a pixel; give the values that become black and white, "
            "such as --data.levels [0,65535]"
        ) from None
    except Exception:  # a damaged one is shown as grey
        return


def _opened(pool: str, split: str) -> tuple[Any, str]:
    """A stream, and what tells it from others: names and sizes of its files, or its name and version on the hub."""
    from datasets import load_dataset  # slow to import

    files = sorted(glob.glob(str(home_path(pool)), recursive=True))
    kinds = {Path(file).suffix for file in files}
    if len(kinds) > 1 or not kinds <= {*BUILDERS}:
        raise UserError(
            f"data.pool={pool}: names files that end in {', '.join(sorted(kinds))}; give .tar or .parquet"
        )
    if not files and (any(mark in pool for mark in "*?[") or Path(pool).suffix in BUILDERS):
        raise UserError(f"data.pool={pool}: no such file")
    try:
        if files:
            stream = load_dataset(
                BUILDERS[kinds.pop()], data_files={"train": files}, split="train", streaming=True
            )
            return stream, " ".join(f"{Path(file).name} {Path(file).stat().st_size}" for file in files)
        stream = load_dataset(pool, split=split, streaming=True)
        return stream, f"{pool} {split} {stream.info.version}"
    except Exception as error:  # the libraries beneath raise whatever files and network make of it
        raise UserError(f"data.pool={pool}: cannot be streamed ({one_line(error)[:160]})") from None


def _image_column(stream: Any, pool: str) -> str:
    import datasets

    columns: list[str] = [
        name for name, feature in (stream.features or {}).items() if isinstance(feature, datasets.Image)
    ]
    if not columns:
        raise UserError(
            f"data.pool={pool}: none of its columns ({', '.join(stream.column_names or ())}) is known to hold images; "
            "name one with --data.image_column"
        )
    return columns[0]
