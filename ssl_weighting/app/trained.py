"""A trained model, ready to use: ``ssl_weighting.load(RUN)``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]
from torch import Tensor
from torch.utils import _pytree as pytree

from ssl_weighting.app.baseline import hand_over
from ssl_weighting.app.belonging import Belonging
from ssl_weighting.app.checkpoints import Saved, below, find_checkpoint, open_checkpoint
from ssl_weighting.app.configurations import differences, share_encoder_name
from ssl_weighting.app.parser import Parser
from ssl_weighting.app.runs import BELONGING
from ssl_weighting.data import ExampleSet, Source, SSLData
from ssl_weighting.data.remembered import NewExamples, remembering
from ssl_weighting.data.tables import table_ending
from ssl_weighting.errors import UserError, named
from ssl_weighting.files import home_path
from ssl_weighting.module import SSLModule
from ssl_weighting.protocols import Model

PARTS = ("model", "data")
GIVEN = "given"
"""Name, among the data's lists, of examples that are in no part of the split."""
NO_BELONGING = (
    f"the run's folder has no {BELONGING}, which needs frozen features, --baseline, and two labels a class"
)
"""Why there is no ``own_probability``."""


class TrainedModel:
    """The averaged θ of a module, with the preprocessing and the classes of its data.

    Args:
        module: A trained module.
        data: The data module that it was trained with, or one like it.
        device: Where to compute; default: a GPU, if there is one.
        kept: The run's ``belonging.safetensors``; ``None`` where it has none.
    """

    def __init__(
        self, module: SSLModule, data: SSLData, device: str | None = None, kept: Path | None = None
    ) -> None:
        self.device = torch.device(device or _best_device())
        self.module, self.data, self.kept = module.to(self.device).eval(), data, kept

    @property
    def class_names(self) -> list[str]:
        """The C classes, in the order of the probabilities."""
        return self.data.class_names[: self.module.num_classes]

    def probabilities(self, examples: Any) -> np.ndarray:
        """Class probabilities of examples of any number.

        Args:
            examples: A folder of images, a table, a list of texts or of paths, or a tensor or array (n, ...) as the
                run's data set takes them.

        Returns:
            float32 (n, C), in the order of the examples; NaN for those that could not be read.

        Raises:
            UserError: If they are nothing that the run's data set can read.
        """
        return self._of_new(examples, None)[0]

    def predict(self, examples: Any, reject: float | None = None) -> list[str | None]:
        """The likeliest class of each example, by name; ``None`` where it could not be read, or is rejected.

        Args:
            examples: See `probabilities`.
            reject: Rejects those whose `own_probability` is below it, above 0 and at most 1; default: none.

        Raises:
            UserError: As `probabilities`; or if examples are to be rejected and the run has no `own_probability`.
        """
        if reject is not None:
            check_reject(reject, "reject", self.kept)
        found, own = self._of_new(examples, None if reject is None else self.belonging)
        without = np.isnan(found).any(1) | (False if own is None else own < reject)
        return [
            None if none else self.class_names[best]
            for none, best in zip(without, np.nan_to_num(found).argmax(-1), strict=True)
        ]

    def own_probability(self, examples: Any) -> np.ndarray:
        """The probability that an example is of one of the classes; see :class:`~ssl_weighting.app.belonging.Belonging`.

        Args:
            examples: See `probabilities`.

        Returns:
            float32 (n,), in the order of the examples; NaN for those that could not be read.

        Raises:
            UserError: As `probabilities`; or if the run has none.
        """
        own = self._of_new(examples, self.belonging)[1]
        if own is None:
            raise UserError(f"own_probability: {NO_BELONGING}; give another run")
        return own

    @cached_property
    def belonging(self) -> Belonging | None:
        """What `own_probability` is computed by; ``None`` where the run has none.

        Raises:
            UserError: If the run's file is damaged, or of other features than the model's.
        """
        if self.kept is None:
            return None
        found, width = Belonging.load(self.kept), self.module.model.backbone.feature_dim
        if found.width != width:
            raise UserError(
                f"{self.kept}: is of {found.width} features, and the model has {width}; leave --model and --data out"
            )
        return found

    @property
    def feature_dim(self) -> int:
        """D, numbers in the features of an example."""
        encoder = self.module.encoder
        return self.module.model.backbone.feature_dim if encoder is None else encoder.feature_dim

    def features(self, examples: Any) -> np.ndarray:
        """Features of examples of any number: a frozen encoder's as it makes them, else the averaged network's.

        Args:
            examples: See `probabilities`.

        Returns:
            float32 (n, D), in the order of the examples; NaN for those that could not be read.
        """
        if isinstance(examples, (list, tuple)) and not examples:
            return np.empty((0, self.feature_dim), np.float32)
        new = self.read(examples)
        self.give(new.source, torch.arange(len(new.rows)))
        whole = np.full((len(new.names), self.feature_dim), np.nan, np.float32)
        done = 0
        for batch in self.features_of_part(GIVEN):
            whole[new.rows[done : done + len(batch)].numpy()] = batch.numpy()
            done += len(batch)
        return whole

    def read(self, examples: Any, key: str = "examples") -> NewExamples:
        """Examples as the run's data set reads them; see `probabilities`.

        Args:
            examples: See `probabilities`.
            key: What they were given as, for messages.
        """
        if isinstance(examples, (str, Path)):
            path = home_path(examples)
            try:
                return self.data.read_new(path, key)
            except UserError as error:
                if key != "examples" or path.is_dir() or table_ending(path) is not None:
                    raise
                raise UserError(
                    f"{error}; single texts and files are given in a list: [{str(examples)!r}]"
                ) from None
        source = self.data.source_of(examples)
        rows = torch.arange(len(source.labels))
        return NewExamples(source.describe(rows), rows, source)

    def give(self, source: Source, rows: Tensor) -> None:
        """Make rows (m,) int64 of a source the data module's list ``given``."""
        self.data.sets[GIVEN] = ExampleSet(source, rows, torch.full((len(rows),), -1), pool=True)

    def of_part(self, part: str) -> Tensor:
        """Probabilities (m, C), on the CPU, of a list that the data module holds, such as ``validation``."""
        return self._of_part(part, None)[0]

    def of_part_with_own(self, part: str) -> tuple[Tensor, np.ndarray | None]:
        """`of_part`, and float32 (m,) `own_probability`, where the run has it: of the pool, what training ended with."""
        if part != "unlabeled" or self.belonging is None:
            return self._of_part(part, self.belonging)
        return self.of_part(part), self.belonging.probability

    @torch.inference_mode()
    def _of_part(self, part: str, belonging: Belonging | None) -> tuple[Tensor, np.ndarray | None]:
        """Both, in one pass through an encoder."""
        views = self.module.views_of(self.data)
        found, own = [torch.empty(0, self.module.num_classes)], [np.empty(0, np.float32)]
        for raw in self._raw(part):
            inputs = views.plain(raw)
            found.append(self.module.probabilities(inputs).cpu())
            if belonging is not None:
                own.append(belonging(inputs.flatten(1).float().cpu().numpy()))
        return torch.cat(found), None if belonging is None else np.concatenate(own)

    def _of_new(self, examples: Any, belonging: Belonging | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Both, of new examples in their order, float32; NaN for those that could not be read."""
        if isinstance(examples, (list, tuple)) and not examples:
            none = None if belonging is None else np.empty(0, np.float32)
            return np.empty((0, self.module.num_classes), np.float32), none
        new = self.read(examples)
        self.give(new.source, torch.arange(len(new.rows)))
        found, own = self._of_part(GIVEN, belonging)
        return _whole(new, found.float().numpy()), None if own is None else _whole(new, own)

    def features_of_part(self, part: str) -> Iterator[Tensor]:
        """Features (B, D), float32 on the CPU, of a list that the data module holds, a batch at a time."""
        views, encoder = self.module.views_of(self.data), self.module.encoder
        for raw in self._raw(part):
            with torch.inference_mode():
                if encoder is not None:
                    features = encoder.features(views.shown(raw, ()))
                else:
                    features = cast(Model, self.module.ema.model)(views.plain(raw)).features
                yield features.float().cpu()

    def _raw(self, part: str) -> Iterator[Any]:
        """Raw inputs of a list in batches, on the device."""
        for batch in self.data.in_order(part):
            yield pytree.tree_map_only(Tensor, lambda x: x.to(self.device), batch.inputs)


def load_run(run: str | Path, device: str | None = None) -> TrainedModel:
    """The trained model of a run; see :func:`ssl_weighting.app.loading.load`."""
    return restored(open_checkpoint(find_checkpoint(run, key="run"), named("run", run)), device=device)[0]


def restored(
    saved: Saved, overrides: Sequence[str] = (), with_training_data: bool = False, device: str | None = None
) -> tuple[TrainedModel, dict[str, tuple[Any, Any]]]:
    """The model of a checkpoint, with the run's own configuration.

    Args:
        saved: The checkpoint.
        overrides: Options of ``model`` and ``data``, as on a command line.
        with_training_data: Whether the run's own training data are looked at; new examples need none of them.
        device: Where to compute; default: a GPU, if there is one.

    Returns:
        The model, and the options that are not those of the run: old value, new value.

    Raises:
        UserError: If an override does not fit, or what the configuration names is not there.
    """
    parser = _parser()
    config, changes = _resolved(parser, saved, overrides)
    with nullcontext() if with_training_data else remembering(saved.own["memory"]):
        made = parser.instantiate_classes(config)
    _load_average(made.model, saved)
    return TrainedModel(made.model, made.data, device, saved.belonging), changes


def check_reject(reject: float, key: str, kept: Path | None) -> None:
    """Refuse a rejection that cannot be.

    Args:
        reject: Least ``own_probability``.
        key: What it was given as: ``reject`` or ``--reject``.
        kept: The run's ``belonging.safetensors``.

    Raises:
        UserError: If it is no such probability, or the run has none.
    """
    what = named(key, reject)
    if not 0 < reject <= 1:
        raise UserError(f"{what}: must be above 0 and at most 1; give {named(key, 0.5)}")
    if kept is None:
        raise UserError(f"{what}: {NO_BELONGING}; leave {key} out")


def _whole(new: NewExamples, values: np.ndarray) -> np.ndarray:
    """Values (m, ...) of those that were read as values (n, ...) of all, in order."""
    whole = np.full((len(new.names), *values.shape[1:]), np.nan, np.float32)
    whole[new.rows.numpy()] = values
    return whole


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _parser() -> Parser:
    parser = Parser(parser_mode="yaml")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_lightning_class_args(SSLModule, "model")
    parser.add_lightning_class_args(SSLData, "data", subclass_mode=True)
    parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
    return parser


def _resolved(
    parser: Parser, saved: Saved, overrides: Sequence[str]
) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """The configuration with its overrides, and how it differs from that of the run."""
    own = {part: saved.configuration[part] for part in PARTS}
    encoder = (own["model"]["backbone"].get("init_args") or {}).get("name")
    texts = own["data"].get("init_args") or {}
    if encoder and texts.get("tokenizer") == encoder:  # follows an encoder that is named anew
        texts["tokenizer"] = None
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(own, file, allow_unicode=True)
        file.flush()
        before = parser.parse_args(["--config", file.name])
        config = parser.parse_args(["--config", file.name, *overrides])
    for one in (before, config):
        share_encoder_name(one)
    plain = [yaml.safe_load(parser.dump(one, skip_unset=False)) for one in (before, config)]
    changes = differences(*({part: one[part] for part in PARTS} for one in plain))
    return config, changes


def _load_average(module: SSLModule, saved: Saved) -> None:
    """Give the module the averaged θ of a checkpoint, in the precision that it was trained in."""
    state, encoder = (below(saved.content["state_dict"], part) for part in ("ema.", "encoder."))
    floating = [value.dtype for value in state.values() if value.is_floating_point()]
    module.to(floating[0])
    try:
        module.ema.load_state_dict(state)
        if module.encoder is not None:
            module.encoder.load_state_dict(encoder)
        if saved.own.get("handed_over"):
            hand_over(module, saved.own["handed_over"])
    except RuntimeError as error:
        raise UserError(
            f"model.backbone={type(module.model.backbone).__name__}: does not fit the checkpoint {saved.path} "
            f"({' '.join(str(error).split())[:160]}); leave --model and --data out"
        ) from None
