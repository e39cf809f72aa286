"""All examples through a frozen encoder, once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from rich.progress import track
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import BatchSampler, DataLoader

from ssl_weighting.data.features import FeatureFile, FeatureTable
from ssl_weighting.data.source import ExampleSet, Source, identity, identity_of_views
from ssl_weighting.data.tokens import cache_folder
from ssl_weighting.distributed import is_first_process
from ssl_weighting.encoder import PLAIN, Encoder, FeatureOptions, fingerprint, view_name
from ssl_weighting.errors import UserError
from ssl_weighting.protocols import View
from ssl_weighting.randomness import seed_by
from ssl_weighting.views import Views

FORMAT = 1
"""Raised when features of the same key would be others."""
TRIED = 16
"""Examples that a view is tried on, to tell what it does."""
CHUNK = 8192
"""Rows that means are summed over at once."""


def encode(
    encoder: Encoder, views: Views, options: FeatureOptions, device: torch.device, wait: Callable[[], Any]
) -> None:
    """Give the data's lists features in place of raw inputs; what is not on the disk is computed.

    The encoder's mean and deviation become those of the pool, unless it has them.

    Args:
        encoder: On ``device``.
        views: Knows the data and the method's views.
        options: How many views, and where they are kept.
        device: Where to compute.
        wait: Returns when all processes have come here: the first one computes.

    Raises:
        UserError: If a view cannot be kept, because it learns from training.
    """
    data, wanted = views.data, _views_of(views, options)
    for source in {id(part.source): part.source for part in data.sets.values()}.values():
        parts = {name: part for name, part in data.sets.items() if part.source is source}
        if all(part.features is not None for part in parts.values()):
            continue
        rows = torch.unique(torch.cat([part.rows for part in parts.values()]))
        trains = "unlabeled" in parts
        work = _Work(encoder, views, options, device, source, rows)
        if is_first_process():
            table = work.table(wanted if trains else [()])
        wait()
        if not is_first_process():  # on another machine it may have to compute, for a cache of its own
            table = work.table(wanted if trains else [()])
        for part in parts.values():
            part.features = table
        if trains and bool((encoder.deviation == 1).all()):
            _standardise(encoder, table.views[PLAIN], data.sets["unlabeled"].rows)


def _views_of(views: Views, options: FeatureOptions) -> list[View]:
    """The example as it is, and what else the method wants to see."""
    asked: list[View] = [views.labeled_view, *views.algorithm.views.values()]
    method = f"model.algorithm={type(views.algorithm).__name__}"
    for steps in asked:
        learns = [type(step).__name__ for step in steps if hasattr(step, "update")]
        if learns:
            raise UserError(
                f"{method}: its view {learns[0]} is learned while training goes on, and a frozen encoder sees each "
                "example before; give --model.algorithm.strong [RandAugment], or --model.backbone.frozen false"
            )
        if not options.views and any(not isinstance(step, str) or step != "weak" for step in steps):
            raise UserError(
                f"model.features.views=0: {method} compares different views of an example; give --model.features.views 1 "
                "or more"
            )
    return [(), *(asked if options.views else [])]


class _Work:
    """The encoding of one source's examples."""

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        options: FeatureOptions,
        device: torch.device,
        source: Source,
        rows: Tensor,
    ) -> None:
        self.encoder, self.views, self.options, self.device = encoder, views, options, device
        self.source, self.rows = source, rows
        self.key = f"{FORMAT} {fingerprint(encoder.backbone)} {options.resize} {identity(source)}"
        self.folder = cache_folder(options.cache)

    def table(self, wanted: list[View]) -> FeatureTable:
        """Files of the views, filled; those that show an example as it is share one."""
        files: dict[str, FeatureFile] = {}
        size = len(self.source.labels)
        some = torch.arange(0, size, max(1, size // TRIED))[:TRIED]  # whatever the split
        batch = ExampleSet(self.source, some, some, pool=True).__getitems__(range(len(some)))
        raw = self._moved(batch.inputs)
        with isolate_rng():
            shown = self._shown(raw, (), "tried")
            for steps in wanted:
                name = view_name(steps)
                if name in files:
                    continue
                drawn = self._shown(raw, steps, "tried")
                if steps and _same(drawn, shown) and _same(self._shown(raw, steps, "again"), shown):
                    files[name] = files[PLAIN]
                    continue
                files[name] = self._file(steps, drawn)
                self._fill(files[name], steps, name)
        return FeatureTable(files)

    def _file(self, steps: View, drawn: Any) -> FeatureFile:
        """The file of a view; one of augmented views is of these very rows, as its draws follow their order."""
        key = hashlib.sha256(f"{self.key} {view_name(steps)}".encode())
        for leaf in pytree.tree_leaves(drawn):
            key.update(leaf.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        if steps:
            of_views = identity_of_views(self.source)
            key.update(f"{self.options.views} {self.options.batch_size} {of_views}".encode())
            key.update(self.rows.numpy().data)
        draws = self.options.views if steps else 1
        shape = (len(self.source.labels), draws, self.encoder.feature_dim)
        return FeatureFile(self.folder / f"features-{key.hexdigest()[:32]}", shape)

    @torch.inference_mode()
    def _fill(self, file: FeatureFile, steps: View, name: str) -> None:
        if not len(file.missing(self.rows)):
            return
        with file.lock():
            todo = self._blocks(file, bool(steps))
            if not todo:  # another run was at it in the meantime
                return
            what = "examples" if not steps else f"examples, {file.shape[1]} views each ({name[:40]})"
            text = f"Encoding {sum(map(len, todo)):,} {what}"
            for block, raw in track(self._fetched(todo), text, total=len(todo)):
                draws = []
                for draw in range(file.shape[1]):
                    seed_by(f"{name} {int(block[0])} {draw}", self.device)
                    draws.append(self.encoder.features(self.views.shown(raw, steps)))
                file.fill(block, torch.stack(draws, 1))

    def _blocks(self, file: FeatureFile, whole: bool) -> list[Tensor]:
        """Rows to compute together: of augmented views the same ones, whatever is there already."""
        rows = self.rows if whole else file.missing(self.rows)
        blocks = torch.split(rows, self.options.batch_size)
        return [block for block in blocks if len(file.missing(block))]

    def _fetched(self, blocks: list[Tensor]) -> Iterator[tuple[Tensor, Any]]:
        """Raw inputs of the blocks on the device, fetched by the data's workers."""
        rows = torch.cat(blocks)
        data = self.views.data
        loader = DataLoader(
            ExampleSet(self.source, rows, torch.full((len(rows),), -1), pool=True),
            batch_sampler=_Consecutive([len(block) for block in blocks]),
            collate_fn=_first,
            num_workers=data.num_workers,
        )
        for block, raw in zip(blocks, loader, strict=True):
            yield block, self._moved(raw)

    def _moved(self, raw: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda x: x.to(self.device), raw)

    @torch.no_grad()
    def _shown(self, raw: Any, steps: View, purpose: str) -> Any:
        """Some examples as a view shows them to the encoder."""
        seed_by(f"{view_name(steps)} {purpose}", self.device)
        return self.views.shown(raw, steps)


class _Consecutive(BatchSampler):
    """Batches of given sizes, one after the other."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def __iter__(self) -> Iterator[list[int]]:
        start = 0
        for size in self.sizes:
            yield list(range(start, start + size))
            start += size

    def __len__(self) -> int:
        return len(self.sizes)


def _first(batch: Any) -> Any:
    return batch.inputs


def _same(one: Any, other: Any) -> bool:
    pairs = list(zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True))
    return all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs)


def _standardise(encoder: Encoder, file: FeatureFile, rows: Tensor) -> None:
    """Mean and deviation of the pool's features; one that is the same everywhere is divided by 1."""
    total = torch.zeros(2, file.shape[2], dtype=torch.float64)
    mean = file.fetch(rows[:1])[0, 0].double()  # about it, so that squares do not cancel
    for chunk in torch.split(rows, CHUNK):
        away = file.fetch(chunk)[:, 0].double() - mean
        total += torch.stack((away.sum(0), away.square().sum(0)))
    shift, square = total / len(rows)
    deviation = (square - shift.square()).clamp(min=0).sqrt()
    deviation = torch.where(deviation < 1e-6, 1.0, deviation)
    encoder.mean.copy_(mean + shift)
    encoder.deviation.copy_(deviation)
