"""Data modules: the split protocol, indexed batches, and views, in one place for every data set."""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from ssl_weighting.data.duplicates import Contents, find_copies, sentences, without_copies
from ssl_weighting.data.remembered import NewExamples, remembered
from ssl_weighting.data.split import Split, make_split, read_split
from ssl_weighting.errors import DataWarning, UserError
from ssl_weighting.files import home_path

NO_TRAINER_PREDICT = (
    "Trainer.predict: use ssl_weighting.load(RUN), or ssl_weighting.trained.TrainedModel(module, data) in the process "
    "that trained, and its predict(examples)"
)
Inputs = Any
View = Sequence[str | Callable[[Tensor], Tensor]]


class Examples(NamedTuple):
    """A batch as it travels to the device.

    Attributes:
        inputs: Raw inputs, (B, ...): uint8 images, float vectors, or a dictionary of token tensors.
        labels: (B,) int64; known classes come first, from 0; −1 where unknown.
        index: (B,) int64, the position in its list of the split: for the unlabelled one, the row of Λ.
    """

    inputs: Inputs
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class Source(Protocol):
    """All examples of a training or test set, raw."""

    labels: Tensor
    """(n,) int64, -1 where unknown."""

    def fetch(self, rows: Tensor) -> Inputs:
        """Raw inputs of some rows, (B,) int64."""
        ...

    def checksum(self) -> str:
        """sha256 over inputs and labels, to tell data sets apart."""
        ...

    def describe(self, rows: Tensor) -> list[str]:
        """What a person knows some rows by, (B,) int64: a file's path, a text."""
        ...


class InMemory:
    """A :class:`Source` that is one tensor (n, ...)."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def fetch(self, rows: Tensor) -> Tensor:
        """See :class:`Source`."""
        return self.inputs[rows]

    def checksum(self) -> str:
        """See :class:`Source`."""
        digest = hashlib.sha256(f"{tuple(self.inputs.shape)} {self.inputs.dtype}".encode())
        digest.update(self.inputs.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def describe(self, rows: Tensor) -> list[str]:
        """See :class:`Source`: the row's number, which is all that is known."""
        return [f"row {row}" for row in rows.tolist()]


class ExampleSet(Dataset[Examples]):
    """Some rows of a source, fetched a batch at a time."""

    def __init__(self, source: Source, rows: Tensor, labels: Tensor) -> None:
        self.source, self.rows, self.labels = source, rows, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, positions: list[int]) -> Examples:
        """The batch at these positions of the list."""
        index = torch.as_tensor(positions, dtype=torch.int64)
        inputs = self.source.fetch(self.rows[index])
        _refuse_not_finite(inputs, self.source, self.rows[index])
        return Examples(inputs, self.labels[index], index)


def _refuse_not_finite(inputs: Inputs, source: Source, rows: Tensor) -> None:
    """A loss that is not finite would be put down to the learning rate."""
    for values in inputs.values() if isinstance(inputs, Mapping) else (inputs,):
        if isinstance(values, Tensor) and values.is_floating_point() and not values.isfinite().all():
            bad = rows[~values.reshape(len(values), -1).isfinite().all(1)]
            others = f" and {len(bad) - 1} more of its batch" if len(bad) > 1 else ""
            raise UserError(
                f"data: {source.describe(bad[:1])[0]}{others} holds NaN or infinity; repair it or leave it out"
            )


class Stream(Sampler[list[int]]):
    """An endless shuffled sequence of batches that is a pure function of (seed, name, batch number).

    Epochs follow each other without a gap and every example comes once an epoch; a batch may span two.
    Nothing has to be saved to resume: start again at the number of batches taken.

    Args:
        size: Number of examples.
        batch_size: Examples a batch and process.
        seed: Seed of the run.
        name: Tells this stream from the run's others.
        start: First batch.
        stop: One past the last batch; ``None`` for no end.
        rank: This process.
        world_size: Number of processes; each gets its own part of a batch of ``batch_size · world_size``.
        block: If given, an epoch goes through the examples block by block of this size, and shuffles within each.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int | str,
        name: str,
        start: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        block: int | None = None,
    ) -> None:
        self.size, self.batch_size, self.start, self.stop = size, batch_size, start, stop
        self.rank, self.world_size, self.block = rank, world_size, size if block is None else block
        self._key = f"{seed} {name}"
        self._held, self._order = "", torch.empty(0, dtype=torch.int64)

    def _permutation(self, epoch: int, block: int) -> Tensor:
        key = f"{self._key} {epoch} {block}" if block else f"{self._key} {epoch}"
        if key != self._held:
            seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
            first = block * self.block
            count = min(self.block, self.size - first)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            self._held, self._order = key, first + order
        return self._order

    def batch(self, number: int) -> Tensor:
        """Positions of batch ``number``, (batch_size,) int64."""
        first = (number * self.world_size + self.rank) * self.batch_size
        parts, needed = [], self.batch_size
        while needed:
            epoch, place = divmod(first, self.size)
            block, offset = divmod(place, self.block)
            part = self._permutation(epoch, block)[offset : offset + needed]
            parts.append(part)
            first, needed = first + len(part), needed - len(part)
        return torch.cat(parts)

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start
        while self.stop is None or number < self.stop:
            yield self.batch(number).tolist()
            number += 1

    def __len__(self) -> int:
        """Batches of the whole run: a resumed trainer counts those that were taken before."""
        if self.stop is None:
            raise TypeError("an endless stream has no length")
        return self.stop


@lru_cache(maxsize=16)
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Constants as a tensor, kept: sending them to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def _same(batch: Any) -> Any:
    return batch


class SSLData(LightningDataModule, ABC):
    """A data set split into labelled, validation and unlabelled examples, with indexed unlabelled batches.

    A data set is one file with a subclass that sets ``name``, ``all_class_names``, ``augmentations``,
    ``mean`` and ``std`` and writes :meth:`load`; one without a test set sets ``has_test`` to false.

    The unlabelled list is all of the training set but the validation examples (as in FixMatch's and UDA's
    code, the labelled ones are among them).

    Args:
        num_labeled: Labelled examples, drawn class by class in proportion to the classes' sizes; ``null`` for all
            that have a label and do not validate.
        num_validation: Validation examples that Λ is learned on (the paper: 1024; 64 to 5000 ablated); ``null`` for
            :func:`~ssl_weighting.data.split.validation_shares` of those that have a label.
        labeled_batch_size: |D'| per process and θ step.
        unlabeled_batch_size: |U'| per process and θ step.
        validation_batch_size: |V'| per Λ step; all of the validation set if it is smaller.
        evaluation_batch_size: Batch size of validation and test passes.
        known_classes: Classes to learn, as numbers of the data set; default all.
        pool_classes: Further classes that only the unlabelled pool holds: a dirty pool, as users have.
        foreign_fraction: Share of the unlabelled list that is of ``pool_classes``, at least 0 and below 1;
            the other examples of those classes are left out. Default: all of them are in.
        num_unlabeled: Unlabelled examples, drawn from all there are; default all. The labelled ones are among them.
        split: A ``split.json`` to use, instead of drawing a split.
        split_seed: Seed of the split; default is the run's seed.
        evaluate_test: Also follow the test error during training. It never selects a model.
        num_workers: Worker processes that fetch raw examples.
    """

    name: str
    all_class_names: Sequence[str]
    augmentations: Mapping[str, Callable[[Tensor], Tensor]]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    has_test: bool = True
    pool_block: int | None = None
    """Unlabelled examples that are cheap to fetch together; ``None`` where any are."""
    divides_evaluation: bool = True
    """Whether each process evaluates its share; if not, each evaluates everything."""

    def __init__(
        self,
        num_labeled: int | None = 250,
        num_validation: int | None = 1024,
        labeled_batch_size: int = 64,
        unlabeled_batch_size: int = 320,
        validation_batch_size: int = 256,
        evaluation_batch_size: int = 500,
        known_classes: list[int] | None = None,
        pool_classes: list[int] | None = None,
        foreign_fraction: float | None = None,
        num_unlabeled: int | None = None,
        split: Path | None = None,
        split_seed: int | None = None,
        evaluate_test: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for key, value in (
            ("num_labeled", num_labeled),
            ("num_validation", num_validation),
            ("num_unlabeled", num_unlabeled),
            ("labeled_batch_size", labeled_batch_size),
            ("unlabeled_batch_size", unlabeled_batch_size),
            ("validation_batch_size", validation_batch_size),
            ("evaluation_batch_size", evaluation_batch_size),
        ):
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value}: must be at least 1")
        if num_workers < 0:
            raise UserError(f"data.num_workers={num_workers}: must be at least 0")
        self.num_labeled, self.num_validation = num_labeled, num_validation
        self.unlabeled_count = num_unlabeled
        self.labeled_batch_size, self.unlabeled_batch_size = labeled_batch_size, unlabeled_batch_size
        self.validation_batch_size, self.evaluation_batch_size = validation_batch_size, evaluation_batch_size
        self.num_workers, self.evaluate_test = num_workers, evaluate_test
        self.split_file = None if split is None else home_path(split)
        self.split_seed = split_seed
        everything = range(len(self.all_class_names))
        self.known_classes = list(everything if known_classes is None else known_classes)
        self.pool_classes = list(pool_classes or [])
        for key, classes in (("known_classes", self.known_classes), ("pool_classes", self.pool_classes)):
            if any(c not in everything for c in classes) or len(set(classes)) < len(classes):
                raise UserError(
                    f"data.{key}={classes}: must be different numbers from 0 to {len(everything) - 1}"
                )
        if len(self.known_classes) < 2:
            raise UserError(f"data.known_classes={self.known_classes}: name at least 2 classes")
        if shared := set(self.known_classes) & set(self.pool_classes):
            raise UserError(
                f"data.pool_classes={self.pool_classes}: {sorted(shared)} are known_classes already"
            )
        if foreign_fraction is not None and not 0 <= foreign_fraction < 1:
            raise UserError(f"data.foreign_fraction={foreign_fraction}: must be at least 0 and below 1")
        if foreign_fraction is not None and not self.pool_classes:
            raise UserError(f"data.foreign_fraction={foreign_fraction}: needs data.pool_classes as well")
        self.foreign_fraction = foreign_fraction
        if not self.has_test and evaluate_test:
            raise UserError(
                f"data.evaluate_test: {self.name} has no test set; give data.test, or leave it out"
            )
        self.memory = remembered()
        self.split: Split | None = None
        self.sets: dict[str, ExampleSet] = {}
        self.training_batches: Callable[[], CombinedLoader]

    # ---- what a data set writes ---------------------------------------------------------------------------

    @abstractmethod
    def load(self, train: bool) -> Source:
        """All training (or test) examples, in the data set's own order and numbering of classes.

        Raises:
            UserError: If they are not there, or damaged.
        """

    def contents(self, source: Source) -> Contents | None:
        """What the examples of a source are compared by, to find copies; nothing where there is no need to."""
        return None

    def labeled_first(self, train: Source) -> Tensor | None:
        """Training rows, int64, to be labelled before any others; none unless overridden."""
        return None

    def to_remember(self) -> dict[str, Any]:
        """Plain values that are needed to read other examples as those of the training set were read."""
        return {"class_names": list(map(str, self.all_class_names)), "has_test": self.has_test}

    def read_new(self, where: Path) -> NewExamples:
        """Examples of a folder or a table that a person points at, without labels, all of them, in order.

        Raises:
            UserError: If the data set has no files of its own, or these cannot be read.
        """
        raise UserError(
            f"--on {where}: {self.name} reads no files of yours; give --on unlabeled, validation or test, or call "
            "ssl_weighting.load(RUN) from Python"
        )

    def source_of(self, examples: Any) -> Source:
        """Examples that Python has already: a tensor or an array (n, ...).

        Raises:
            UserError: If they are something else.
        """
        try:
            inputs = torch.as_tensor(examples)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"examples: {self.name} takes a tensor or an array ({error})") from None
        if inputs.dtype == torch.float64:
            inputs = inputs.float()
        return InMemory(inputs, torch.full((len(inputs),), -1))

    def prepare(self, raw: Inputs) -> Inputs:
        """Raw inputs on the device as augmentations take them: uint8 images become float32 in [0, 1]."""
        return raw.float() / 255 if isinstance(raw, Tensor) and raw.dtype == torch.uint8 else raw

    def normalise(self, inputs: Inputs) -> Inputs:
        """Augmented inputs as the network takes them: (x − mean) / std a channel, if the set has them."""
        if not self.mean:
            return inputs
        shape = (-1, *[1] * (inputs.dim() - 2))
        mean, std = (_on_device(tuple(v), inputs.dtype, inputs.device) for v in (self.mean, self.std))
        return (inputs - mean.view(shape)) / std.view(shape)

    # ---- what the module uses -----------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Number of classes to learn."""
        return len(self.known_classes)

    @property
    def class_names(self) -> list[str]:
        """Names of the known classes, then of those only the pool holds: labels count through this list."""
        return [self.all_class_names[c] for c in (*self.known_classes, *self.pool_classes)]

    @property
    def num_unlabeled(self) -> int:
        """|U|, the number of rows of Λ."""
        return len(self.sets["unlabeled"])

    def view(self, raw: Inputs, steps: View) -> Inputs:
        """A batch as one of a method's views shows it: prepared, augmented step by step, normalised.

        Raises:
            UserError: If a step names an augmentation that this data set does not have.
        """
        inputs = self.prepare(raw)
        for step in steps:
            if isinstance(step, str):
                if step not in self.augmentations:
                    raise UserError(
                        f"model.algorithm wants the view {step!r}, which {self.name} does not have; it has "
                        f"{sorted(self.augmentations) or 'none'}"
                    )
                step = self.augmentations[step]
            inputs = step(inputs)
        return self.normalise(inputs)

    def setup(self, stage: str | None = None) -> None:
        """Load the data and split it, once. One that remembers a training set loads no other than the test set."""
        if self.split is None and self.memory is None:
            train = self.load(train=True)
            checksum = train.checksum()
            labels = self._labels_without_copies(train, stage)
            if self.split_file is not None:
                self.split = read_split(self.split_file, self.name, checksum)
                self._check_classes(self.split, train.labels)
            else:
                self.split = make_split(
                    labels,
                    data_set=self.name,
                    checksum=checksum,
                    class_names=self.all_class_names,
                    known_classes=self.known_classes,
                    pool_classes=self.pool_classes,
                    foreign_fraction=self.foreign_fraction,
                    num_labeled=self.num_labeled,
                    num_validation=self.num_validation,
                    num_unlabeled=self.unlabeled_count,
                    seed=self._seed(),
                    first=self.labeled_first(train),
                )
            for part in ("labeled", "validation", "unlabeled"):
                self.sets[part] = self._subset(train, getattr(self.split, part))
        if stage == "test" or (stage is None and self.has_test) or self.evaluate_test:
            self._setup_test()

    def _labels_without_copies(self, train: Source, stage: str | None) -> Tensor:
        """Labels to draw a split by, (n,) int64; what there is to be said of copies is said."""
        contents = self.contents(train)
        if contents is None or (self.split_file is not None and stage != "fit"):
            return train.labels
        if self.has_test:
            self._setup_test()
        test = self.contents(self.sets["test"].source) if "test" in self.sets else None
        copies = find_copies(contents, test, self.known_classes)
        for sentence in sentences(copies, contents, test):
            warnings.warn(sentence, DataWarning, stacklevel=2)
        return without_copies(train.labels, copies, contents)

    def _seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.split_seed is None else self.split_seed

    def _check_classes(self, split: Split, labels: Tensor) -> None:
        """A split of other classes would give labels that the network has no output for."""
        labelled = {*labels[split.labeled].tolist(), *labels[split.validation].tolist()}
        strange = {*labels[split.unlabeled].tolist()} - {*self.known_classes, *self.pool_classes, -1}
        if labelled != {*self.known_classes} or strange:
            raise UserError(
                f"data.split={self.split_file}: not drawn for data.known_classes={self.known_classes} and "
                f"data.pool_classes={self.pool_classes}; give the classes that it was drawn for"
            )

    def _setup_test(self) -> None:
        if not self.has_test:
            raise UserError(
                f"data.test: {self.name} has no test set; give one, or look at the validation error"
            )
        if "test" not in self.sets:
            test = self.load(train=False)
            known = torch.isin(test.labels, torch.tensor(self.known_classes))
            self.sets["test"] = self._subset(test, known.nonzero().flatten())

    def _subset(self, source: Source, rows: Tensor) -> ExampleSet:
        renumbered = torch.full((len(self.all_class_names) + 1,), -1)
        for new, old in enumerate((*self.known_classes, *self.pool_classes)):
            renumbered[old] = new
        return ExampleSet(source, rows, renumbered[source.labels[rows]])

    # ---- loaders ------------------------------------------------------------------------------------------

    def _loader(self, part: str, sampler: Sampler[list[int]]) -> DataLoader[Examples]:
        return DataLoader(
            self.sets[part],
            batch_sampler=sampler,
            collate_fn=_same,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )

    def streams(
        self,
        parts: Mapping[str, tuple[str, int]],
        seed: str,
        start: int,
        stop: int | None,
        rank: int,
        world_size: int,
    ) -> CombinedLoader:
        """Shuffled batches of several lists side by side.

        Args:
            parts: For every name in the result, the list of the split it is drawn from, and the batch size.
            seed: Seed of the run, and what the batches are for.
            start: First batch.
            stop: One past the last.
            rank: This process.
            world_size: Number of processes.
        """
        loaders = {}
        for name, (part, size) in parts.items():
            block = self.pool_block if part == "unlabeled" else None
            stream = Stream(len(self.sets[part]), size, seed, name, start, stop, rank, world_size, block)
            loaders[name] = self._loader(part, stream)
        return CombinedLoader(loaders, "min_size")

    def in_order(self, part: str) -> DataLoader[Examples]:
        """A list, batch by batch, in its order; of several processes each gets its own part."""
        size, rank, processes = len(self.sets[part]), 0, 1
        if self.divides_evaluation and self.trainer is not None:
            rank, processes = self.trainer.global_rank, self.trainer.world_size
        mine = range(rank, size, processes) if size >= processes else range(size)
        return self._loader(part, BatchSampler(mine, self.evaluation_batch_size, drop_last=False))

    def train_dataloader(self) -> CombinedLoader:
        """The batches of the θ steps; which come when is the loop's to say."""
        return self.training_batches()

    def val_dataloader(self) -> list[DataLoader[Examples]]:
        """The validation set, and the test set if its error is to be followed."""
        return [self.in_order("validation"), *([self.in_order("test")] if self.evaluate_test else [])]

    def predict_dataloader(self) -> Any:
        """Not by Lightning's ``Trainer.predict``.

        Raises:
            UserError: Naming the way.
        """
        raise UserError(NO_TRAINER_PREDICT)

    def test_dataloader(self) -> DataLoader[Examples]:
        """The test set, known classes only."""
        return self.in_order("test")
