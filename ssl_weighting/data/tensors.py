"""Tensors and data sets of one's own, from Python."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, default_collate

from ssl_weighting.augment import RandomFlipCrop
from ssl_weighting.data.duplicates import Contents, of_tensor
from ssl_weighting.data.labels import class_numbers
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.source import InMemory, Source
from ssl_weighting.errors import UserError, one_line
from ssl_weighting.protocols import Inputs, View

Examples = tuple[Tensor | np.ndarray | Dataset[Any], Any]


class DatasetSource:
    """A :class:`~ssl_weighting.data.source.Source` of a map-style ``torch.utils.data.Dataset``.

    Args:
        dataset: Its items are inputs, tensors or dictionaries of them, or tuples that begin with one.
        labels: (n,) int64, −1 where unknown.
    """

    def __init__(self, dataset: Dataset[Any], labels: Tensor) -> None:
        self.dataset, self.labels = dataset, labels

    def fetch(self, rows: Tensor) -> Inputs:
        """The items' inputs, collated."""
        items = [self.dataset[row] for row in rows.tolist()]
        inputs = [item[0] if isinstance(item, (tuple, list)) else item for item in items]
        try:
            return default_collate(inputs)
        except (TypeError, RuntimeError) as error:
            raise UserError(
                f"data.inputs: items of the data set make no batch ({one_line(error)[:160]}); give tensors or arrays of "
                "one shape"
            ) from None

    def checksum(self) -> str:
        """sha256 over type, length and labels; the items are not read."""
        digest = hashlib.sha256(f"{type(self.dataset).__qualname__} {len(self.labels)}".encode())
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def identity(self) -> str:
        """sha256 over all items' inputs, which are read for it, one by one."""
        digest = hashlib.sha256(b"items")
        for row in range(len(self.labels)):
            for leaf in pytree.tree_leaves(self.fetch(torch.tensor([row]))):
                value = leaf.contiguous()
                digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def describe(self, rows: Tensor) -> list[str]:
        """The items' numbers, which is all that is known."""
        return [f"row {row}" for row in rows.tolist()]


class TensorData(SSLData):
    """Training examples that Python has already: a tensor, or any map-style data set, and their labels.

    Args:
        inputs: (n, ...), a tensor, an array, a table of numbers, or a data set of n items. uint8 counts as pixels and
            becomes float32 in [0, 1].
        labels: (n,) class numbers from 0, as a tensor, an array, a list or a pandas column; −1, NaN or ``None`` where
            unknown: those are the pool. Truth values count as 0 and 1.
        test: Test inputs and their labels, or nothing.
        class_names: Default: the numbers.
        augmentations: Views by name, functions of a batch on the device. Default, for images: ``weak``, mirror and
            crop. Methods for other inputs want a ``weak`` too.
        mean: Subtracted from every channel before the network, if given.
        std: What that is divided by.
        num_labeled: See :class:`~ssl_weighting.data.module.SSLData`; default: all.
        num_validation: See :class:`~ssl_weighting.data.module.SSLData`; default: a share.
        kwargs: See :class:`~ssl_weighting.data.module.SSLData`.

    Raises:
        UserError: If numbers of inputs and labels differ, labels are no class numbers, class names are not one each, or
            inputs are not finite, sparse, or of other shapes in training and test.
    """

    name = "tensors"

    def __init__(
        self,
        inputs: Tensor | np.ndarray | Dataset[Any],
        labels: Any,
        test: Examples | None = None,
        class_names: Sequence[str] | None = None,
        augmentations: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        num_labeled: int | None = None,
        num_validation: int | None = None,
        **kwargs: Any,
    ) -> None:
        labels = class_numbers(labels, "data.inputs")
        count = int(labels.max()) + 1 if labels.numel() else 0
        if class_names is None and count > max(2, labels.numel()):
            raise UserError(
                f"data.inputs: labels go up to {count - 1}, and there are {labels.numel()}; number the classes from 0, "
                "and give -1 where unknown"
            )
        self.all_class_names = list(map(str, range(count))) if class_names is None else list(class_names)
        if len(set(self.all_class_names)) < len(self.all_class_names):
            raise UserError(
                f"data.class_names={self.all_class_names}: a name stands there twice; give each class its own"
            )
        inputs = _as_tensor("inputs", inputs)
        self.train = _checked("inputs", inputs, labels, len(self.all_class_names))
        if len(self.all_class_names) < 2:
            raise UserError(
                "data.inputs: the labels hold fewer than 2 classes; give examples of at least 2, numbered from 0"
            )
        self.test = None
        if test is not None:
            others = _as_tensor("test", test[0])
            self.test = _checked("test", others, test[1], len(self.all_class_names))
            _refuse_other_shapes(inputs, others)
        self.has_test = test is not None
        self.mean, self.std = mean, std
        self.augmentations = MappingProxyType(dict(augmentations or _default_augmentations(inputs)))
        super().__init__(num_labeled=num_labeled, num_validation=num_validation, **kwargs)

    def load(self, train: bool) -> Source:
        """What the constructor was given."""
        source = self.train if train else self.test
        assert source is not None
        return source

    def view(self, raw: Inputs, steps: View) -> Inputs:
        """See :class:`~ssl_weighting.data.module.SSLData`."""
        for step in steps:
            if isinstance(step, str) and step not in self.augmentations:
                raise UserError(
                    f"data.augmentations: model.algorithm wants the view {step!r}, and none is known for these inputs; "
                    f"give augmentations={{{step!r}: f}}, f a function of a batch. Images whose channels come first, "
                    "(n, 3, height, width), have a 'weak' one"
                )
        return super().view(raw, steps)

    def contents(self, source: Source) -> Contents | None:
        """See :class:`~ssl_weighting.data.module.SSLData`: of tensors; the items of a data set are not read for this."""
        return of_tensor(source.inputs, source.labels) if isinstance(source, InMemory) else None


def _as_tensor(name: str, inputs: Any) -> Tensor | Dataset[Any]:
    """Arrays, tables and lists of numbers as a tensor; a tensor or a data set as it is."""
    numbers = (int, float, list, np.generic, np.ndarray)
    listed = isinstance(inputs, list | tuple) and len(inputs) > 0 and isinstance(inputs[0], numbers)
    if isinstance(inputs, Tensor):
        if inputs.layout != torch.strided:
            raise UserError(
                f"data.{name}: the inputs are sparse, which nothing here takes; give inputs.to_dense()"
            )
        return inputs
    if not listed and not hasattr(inputs, "__array__"):
        return cast("Dataset[Any]", inputs)
    try:
        return torch.from_numpy(np.ascontiguousarray(inputs))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"data.{name}: the inputs are no table of numbers ({one_line(error)[:160]}); give numbers, as many in "
            "each row"
        ) from None


def _refuse_other_shapes(inputs: Tensor | Dataset[Any], others: Tensor | Dataset[Any]) -> None:
    if not isinstance(inputs, Tensor) or not isinstance(others, Tensor):
        return
    shape, other = tuple(inputs.shape[1:]), tuple(others.shape[1:])
    if shape != other:
        raise UserError(
            f"data.test: its inputs have the shape {other}, and those of training {shape}; give them alike"
        )


def _checked(name: str, inputs: Tensor | Dataset[Any], labels: Any, classes: int) -> Source:
    labels = class_numbers(labels, f"data.{name}")
    length = len(inputs)  # type: ignore[arg-type]  # a map-style data set has one
    if labels.shape != (length,):
        raise UserError(
            f"data.{name}: {length} inputs, and labels of shape {tuple(labels.shape)}; give a label each"
        )
    if length and not -1 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(f"data.{name}: labels must be from 0 to {classes - 1}, or -1 where unknown")
    if not isinstance(inputs, Tensor):
        return DatasetSource(inputs, labels)
    if inputs.requires_grad:
        raise UserError(
            f"data.{name}: the inputs require a gradient, which nothing here takes; give inputs.detach()"
        )
    if inputs.is_floating_point() and not inputs.isfinite().all():
        bad = (~inputs.reshape(length, -1).isfinite().all(1)).nonzero().flatten()
        raise UserError(
            f"data.{name}: {len(bad)} of {length} rows hold NaN or infinity (the first: row {int(bad[0])}); repair them, "
            "or leave them out"
        )
    return InMemory(inputs.cpu(), labels)


def _default_augmentations(inputs: Tensor | Dataset[Any]) -> dict[str, Callable[[Tensor], Tensor]]:
    """For images (C = 1 or 3), mirror and crop by an eighth; for all else, none."""
    first = inputs[0]
    image = first[0] if isinstance(first, (tuple, list)) else first
    if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] not in (1, 3):
        return {}
    return {"weak": RandomFlipCrop(padding=max(1, min(image.shape[1:]) // 8), flip=True)}
