"""Data modules: the split protocol, indexed batches, and views, in one place for every data set."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler

from ssl_weighting.checks import require
from ssl_weighting.data.duplicates import Contents, find_copies, sentences, without_copies
from ssl_weighting.data.near_duplicates import without_leaks
from ssl_weighting.data.remembered import NewExamples, remembered
from ssl_weighting.data.source import ExampleSet, InMemory, Source
from ssl_weighting.data.split import Split, check_classes, check_split_classes, make_split, read_split
from ssl_weighting.data.stream import Stream
from ssl_weighting.errors import DataWarning, UserError, named
from ssl_weighting.files import home_path
from ssl_weighting.protocols import Inputs, View

NO_TRAINER_PREDICT = (
    "Trainer.predict: use ssl_weighting.load(RUN), or ssl_weighting.app.trained.TrainedModel(module, data) in the "
    "process that trained, and its predict(examples)"
)


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
            :func:`~ssl_weighting.data.split.validation_shares` of those that have a label. 0: all labels train, and Λ is
            learned on them, each left out in turn (see :class:`~ssl_weighting.influence.ExactLastLayer`).
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
        drop_test_leaks: Draw a split whose pool holds no near duplicates of test examples; it says which were dropped.
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
        drop_test_leaks: bool = False,
        evaluate_test: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        counts = {
            "num_labeled": num_labeled,
            "num_validation": num_validation,
            "num_unlabeled": num_unlabeled,
            "labeled_batch_size": labeled_batch_size,
            "unlabeled_batch_size": unlabeled_batch_size,
            "validation_batch_size": validation_batch_size,
            "evaluation_batch_size": evaluation_batch_size,
        }
        for key, value in counts.items():
            least = 0 if key == "num_validation" else 1
            require(f"data.{key}", value, value is None or value >= least, f"must be at least {least}")
        require("data.num_workers", num_workers, num_workers >= 0, "must be at least 0")
        self.num_labeled, self.num_validation = num_labeled, num_validation
        self.unlabeled_count = num_unlabeled
        self.labeled_batch_size, self.unlabeled_batch_size = labeled_batch_size, unlabeled_batch_size
        self.validation_batch_size, self.evaluation_batch_size = validation_batch_size, evaluation_batch_size
        self.num_workers, self.evaluate_test = num_workers, evaluate_test
        self.split_file = None if split is None else home_path(split)
        self.split_seed, self.drop_test_leaks = split_seed, drop_test_leaks
        everything = range(len(self.all_class_names))
        self.known_classes = list(everything if known_classes is None else known_classes)
        self.pool_classes, self.foreign_fraction = list(pool_classes or []), foreign_fraction
        check_classes(self.known_classes, self.pool_classes, foreign_fraction, len(everything) - 1)
        no_test = f"{self.name} has no test set; give data.test, or leave it out"
        require("data.evaluate_test", evaluate_test, self.has_test or not evaluate_test, no_test)
        require("data.drop_test_leaks", drop_test_leaks, self.has_test or not drop_test_leaks, no_test)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        """Of the run: batches follow from it and the step. A resumed run goes on with its own."""
        self.memory = remembered()
        self.split: Split | None = None
        self.sets: dict[str, ExampleSet] = {}

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

    def read_new(self, where: Path, key: str = "--on") -> NewExamples:
        """Examples of a folder or a table that a person points at, without labels, all of them, in order.

        Args:
            where: The folder or table.
            key: What it was given as, for messages: ``--on``, or ``examples`` in Python.

        Raises:
            UserError: If the data set has no files of its own, or these cannot be read.
        """
        raise UserError(
            f"{named(key, where)}: {self.name} reads no files of yours; give --on unlabeled, validation or test, or a "
            "tensor to ssl_weighting.load(RUN).predict in Python"
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
                check_split_classes(
                    self.split, train.labels, self.known_classes, self.pool_classes, self.split_file
                )
                searched = self.split.dropped is not None or not self.drop_test_leaks
                hint = "drawn without data.drop_test_leaks; draw another with --data.split null, or leave that out"
                require("data.split", self.split_file, searched, hint)
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
                    seed=self.seed if self.split_seed is None else self.split_seed,
                    first=self.labeled_first(train),
                )
            for part in ("labeled", "validation", "unlabeled"):
                self.sets[part] = self._subset(train, getattr(self.split, part), part == "unlabeled")
            if self.drop_test_leaks and self.split_file is None:
                self._setup_test()
                self.split = without_leaks(self.split, self.sets)
                self.sets["unlabeled"] = self._subset(train, self.split.unlabeled, True)
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

    def _setup_test(self) -> None:
        if not self.has_test:
            raise UserError(
                f"data.test: {self.name} has no test set; give one with --data.test FOLDER|TABLE, or look at the "
                "validation error with ssl-weighting validate RUN"
            )
        if "test" not in self.sets:
            test = self.load(train=False)
            known = torch.isin(test.labels, torch.tensor(self.known_classes))
            self.sets["test"] = self._subset(test, known.nonzero().flatten())

    def _subset(self, source: Source, rows: Tensor, pool: bool = False) -> ExampleSet:
        renumbered = torch.full((len(self.all_class_names) + 1,), -1)
        for new, old in enumerate((*self.known_classes, *self.pool_classes)):
            renumbered[old] = new
        return ExampleSet(source, rows, renumbered[source.labels[rows]], pool)

    def unlabeled_labels(self) -> Tensor:
        """True labels (|U|,) int64 of the unlabelled examples, −1 where unknown. Never trained on."""
        return self.sets["unlabeled"].labels

    def judged_labels(self, rows: Tensor) -> Tensor:
        """Labels (n,) int64 to judge unlabelled examples by, from their rows (n,).

        −1 where unknown, and of the labelled examples in the pool, whose labels training has seen.
        """
        assert self.split is not None
        seen = torch.isin(self.split.unlabeled[rows], self.split.labeled)
        return self.unlabeled_labels()[rows].masked_fill(seen, -1)

    # ---- loaders ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run draws its batches by."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the batches of the run that saved this."""
        self.seed = state_dict["seed"]

    def _loader(self, part: str, sampler: Sampler[list[int]]) -> DataLoader[Any]:
        return DataLoader(
            self.sets[part],
            batch_sampler=sampler,
            collate_fn=_same,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )

    def _streams(
        self, purpose: str, sizes: Mapping[str, int], start: int, stop: int | None, a_pass: int | None = None
    ) -> CombinedLoader:
        """Shuffled batches of several lists side by side, from batch number ``start`` on."""
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        loaders = {}
        for part, size in sizes.items():
            block = self.pool_block if part == "unlabeled" else None
            key = f"{self.seed} {purpose}"
            stream = Stream(len(self.sets[part]), size, key, part, start, stop, rank, world, block, a_pass)
            loaders[part] = self._loader(part, stream)
        return CombinedLoader(loaders, "min_size")

    def train_dataloader(self) -> CombinedLoader:
        """Labelled and unlabelled batches side by side, from the step at which the trainer stands.

        Each is ``{"labeled": LabeledBatch, "unlabeled": Batch}``. They end with the trainer's ``max_steps``; without it,
        or without a trainer, after as many as go once through the pool, and go on from there in the next epoch.
        """
        sizes = {"labeled": self.labeled_batch_size, "unlabeled": self.unlabeled_batch_size}
        trainer = self.trainer
        batches = 1 if trainer is None else trainer.accumulate_grad_batches
        if trainer is not None:
            batches = getattr(trainer.lightning_module, "batches_per_step", batches)
        start = 0 if trainer is None else trainer.global_step * batches
        if trainer is not None and trainer.max_steps > 0:
            return self._streams("theta", sizes, start, trainer.max_steps * batches)
        world = 1 if trainer is None else trainer.world_size
        a_pass = -(-self.num_unlabeled // (self.unlabeled_batch_size * world))
        return self._streams("theta", sizes, start, None, a_pass)

    def influence_batches(self, done: int) -> CombinedLoader:
        """Fresh D', U' and, where labels are kept aside, V', without end, after ``done`` Λ steps (Alg. 1, line 7)."""
        world = 1 if self.trainer is None else self.trainer.world_size
        validation = min(self.validation_batch_size, -(-len(self.sets["validation"]) // world))
        sizes = {"labeled": self.labeled_batch_size, "unlabeled": self.unlabeled_batch_size}
        if validation:
            sizes["validation"] = validation
        return self._streams("influence", sizes, done, None)

    def in_order(self, part: str) -> DataLoader[Any]:
        """A list, batch by batch, in its order; of several processes each gets its own part."""
        size, rank, processes = len(self.sets[part]), 0, 1
        if self.divides_evaluation and self.trainer is not None:
            rank, processes = self.trainer.global_rank, self.trainer.world_size
        mine = range(rank, size, processes) if size >= processes else range(size)
        return self._loader(part, BatchSampler(mine, self.evaluation_batch_size, drop_last=False))

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """The validation set, which may be empty, and the test set if its error is to be followed."""
        return [self.in_order("validation"), *([self.in_order("test")] if self.evaluate_test else [])]

    def predict_dataloader(self) -> Any:
        """Refused, for Lightning's ``Trainer.predict`` has no way to name the examples."""
        raise UserError(NO_TRAINER_PREDICT)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test set, known classes only."""
        return self.in_order("test")
