"""What is looked at before training, and while it runs, so that a mistake is one line and costs nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from ssl_weighting.checks import require
from ssl_weighting.data.module import SSLData
from ssl_weighting.distributed import is_first_process
from ssl_weighting.errors import NonFiniteError, UserError
from ssl_weighting.influence import ExactLastLayer, Influence
from ssl_weighting.precision import check_precision
from ssl_weighting.terms import LossTerm
from ssl_weighting.weighting import WeightingOptions

FAR = 0.07
"""Difference of a channel's mean or deviation that makes two normalisations others."""
MEND = "the last good checkpoint is kept; lower the learning rate, or raise model.influence.damping if it is an influence"
"""What helps where numbers are not finite."""


def at_step(error: NonFiniteError, step: int) -> NonFiniteError:
    """What is not finite, when, and what helps."""
    return NonFiniteError(f"{error}, at step {step}; {MEND}")


def check_setup(
    num_classes: int, backbone: nn.Module, data: SSLData, trainer: Trainer, fits: bool, compiles_for: Any
) -> None:
    """Refuse what cannot be trained or evaluated together.

    Args:
        num_classes: C of the head.
        backbone: The network that reads examples.
        data: The data module.
        trainer: Whose precision and number of steps are looked at.
        fits: Whether it is to train.
        compiles_for: The device that code is compiled for; ``None`` where none is.

    Raises:
        UserError: Naming the option.
    """
    check_precision(trainer.precision)
    check_classes(num_classes, data)
    check_vocabulary(backbone, data)
    if fits and is_first_process():
        warn_of_normalisation(backbone, data)
    fine = not fits or trainer.max_steps >= 1
    require("trainer.max_steps", trainer.max_steps, fine, "say how many θ steps to train, at least 1")
    if compiles_for is not None:
        require_compiler(compiles_for)


def check_classes(num_classes: int, data: SSLData) -> None:
    """Refuse a head with more or fewer outputs than the data has classes.

    Raises:
        UserError: With both numbers.
    """
    if num_classes != data.num_classes:
        raise UserError(
            f"model.num_classes={num_classes}: the data has {data.num_classes} classes; "
            f"give num_classes={data.num_classes}"
        )


def check_vocabulary(backbone: nn.Module, data: SSLData) -> None:
    """Refuse a tokenizer that is not the encoder's: where it knows more word pieces, or fewer than half as many.

    Raises:
        UserError: With both numbers.
    """
    known, expected = getattr(data, "vocabulary_size", None), getattr(backbone, "vocabulary_size", None)
    if known and expected and not expected / 2 <= known <= expected:
        raise UserError(
            f"data.tokenizer={getattr(data, 'tokenizer_name', None)}: knows {known} word pieces, and the encoder "
            f"{expected}: its files (tokenizer.json or vocab.txt) are missing or another encoder's; put the encoder's "
            "own into its folder"
        )


def warn_of_normalisation(backbone: nn.Module, data: SSLData) -> None:
    """Say that images are not normalised as a pretrained network expects.

    Args:
        backbone: The network; knows its ``mean`` and ``std`` if it is pretrained.
        data: The data module.
    """
    expected = [tuple(getattr(backbone, name, ())) for name in ("mean", "std")]
    given = [tuple(part) for part in (data.mean, data.std)]
    if not all(expected) or not all(len(a) == len(b) for a, b in zip(expected, given, strict=True)):
        return
    apart = max(
        abs(a - b)
        for one, other in zip(expected, given, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    if apart > FAR:
        means = [", ".join(f"{value:.3g}" for value in values) for values in (expected[0], given[0])]
        better = "range" if abs(expected[0][2] - 0.5) < abs(expected[0][2] - 0.406) else "imagenet"
        hint = f"; type --data.normalise_by {better}" if hasattr(data, "normalise_by") else ""
        warnings.warn(
            f"model.backbone={type(backbone).__name__}: was trained on images of mean {means[0]}, and these are "
            f"normalised by {means[1]}{hint}",
            stacklevel=2,
        )


def require_compiler(device: torch.device) -> None:
    """Refuse ``compile`` where the code that torch generates cannot be built.

    Raises:
        UserError: With what is missing.
    """
    named = os.environ.get("CXX")
    if not any(shutil.which(compiler) for compiler in ([named] if named else ["g++", "clang++", "gcc"])):
        raise UserError("model.compile=true: needs a C++ compiler; install g++, or name one with CXX")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("model.compile=true: needs triton on a GPU; pip install triton")


def warn_without_weight_step(options: WeightingOptions, steps: int) -> None:
    """Say that no weight will move, where the first Λ step would come after the last θ step.

    Args:
        options: How Λ is learned.
        steps: θ steps to train.
    """
    warmup, inner = options.warmup_steps, options.inner_steps
    if warmup + inner <= steps:
        return
    less = min(warmup, steps // 8)
    hint = [f"--model.weighting.warmup_steps {less}"] if less < warmup else []
    if less + inner > steps:
        hint.append(f"--model.weighting.inner_steps {max(1, (steps - less) // 8)}")
    warnings.warn(
        f"model.weighting.warmup_steps={warmup}: no weight will move, for the first Λ step comes after θ step "
        f"{warmup + inner} (model.weighting.inner_steps={inner}) and trainer.max_steps={steps}; type {' '.join(hint)} or "
        f"--trainer.max_steps {10 * (warmup + inner)}",
        stacklevel=2,
    )


def check_labels_can_judge(
    algorithm: nn.Module, influence: Influence, terms: Sequence[LossTerm], target: Tensor
) -> None:
    """Refuse to learn weights on labelled examples that a method mixes; say where they are judged too kindly.

    Args:
        algorithm: The method.
        influence: How weights are learned.
        terms: The method's terms of a few examples.
        target: Their labels, (B, C).

    Raises:
        UserError: If no term is of the labelled examples as they are.
    """
    own = next((term for term in terms if term.row is None), None)
    if own is None or own.target.shape != target.shape or not torch.equal(own.target, target):
        raise UserError(
            f"data.num_validation=0: {type(algorithm).__name__} does not compare labelled examples to their own labels "
            "alone, so that none can be left out; keep some aside with --data.num_validation null"
        )
    if influence.needs_held_out and is_first_process():
        warnings.warn(
            f"data.num_validation=0: {type(influence).__name__} judges labelled examples as they were trained on, which "
            "is too kind; type --model.influence ExactLastLayer, which leaves each out and is for features that stay, "
            "--model.influence RelativeInfluence where they are trained, or --data.num_validation null",
            stacklevel=2,
        )


def warn_of_twins(influence: Influence, size: int, labels: int) -> None:
    """Say it where a batch holds a labelled example twice, so that none of the two is really left out.

    Args:
        influence: How weights are learned.
        size: Labelled examples of a batch.
        labels: Labelled examples there are.
    """
    if size > labels and isinstance(influence, ExactLastLayer) and is_first_process():
        warnings.warn(
            f"data.labeled_batch_size={size}: more than the {labels} labels, so that batches hold copies, and of an "
            f"example that is left out a copy stays; type --data.labeled_batch_size {labels}",
            stacklevel=2,
        )


class FiniteGuard:
    """Remembers, on the device, the first step at which a value was not finite, and says so when asked.

    Asking waits for the device, so on an accelerator it is done when logging, which waits anyway.
    """

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}

    def see(self, step: int, values: dict[str, Tensor]) -> None:
        """Look at scalars by their names."""
        for name, value in values.items():
            bad = ~torch.isfinite(value.detach())
            first = self._first.get(name)
            if first is None:
                first = torch.full((), -1, dtype=torch.int64, device=value.device)
            self._first[name] = torch.where((first < 0) & bad, step, first)

    def check(self) -> None:
        """Stop if a value was not finite.

        Raises:
            NonFiniteError: Naming it and the step.
        """
        for name, first in self._first.items():
            if first >= 0:
                raise NonFiniteError(f"{name} is not finite at step {int(first)}; {MEND}")
