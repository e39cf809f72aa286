"""The plainest use of the labels beside every run, and the choice between it and the model with the pool."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils import _pytree as pytree

from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.app.belonging import NEEDED, POOL, Belonging
from ssl_weighting.app.mixture import MixedHead, Mixture
from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.precomputed import Precomputed
from ssl_weighting.data import ExampleSet, SSLData
from ssl_weighting.encoding import encode
from ssl_weighting.errors import UserError
from ssl_weighting.module import SSLModule
from ssl_weighting.probe import Probe, cross_entropy, fit_probe, folds_of, scale_of
from ssl_weighting.views import Views

MOST = 2000
"""Labels of more examples than this are not probed: cross-validation would take minutes."""
COMPARED = 100_000
"""Largest pool of which examples are told what they belong to: its features lie in memory for that."""
WORD_SCALE = 30.0
"""What rows of word frequencies, of length 1, are multiplied by, for the probe's penalties."""
WORDS = 5000
"""Most words that it looks at, the most frequent ones."""

Reader = Callable[[str], Any]
"""Features (n, D), an array or a sparse matrix, of a part of the data."""


@dataclass(frozen=True)
class Verdict:
    """What the pool was worth.

    Attributes:
        probe: The labels-only probe on all labels.
        reads: What it saw: ``frozen features``, ``pixels``, ``inputs`` or ``words``.
        labels: How many labels it was trained on.
        test_error: Its error on the test set, a share; ``None`` without one.
        pool_error: Cross-validated error of the model with the pool, where the two were compared.
        pool_loss: Its cross-validated cross-entropy, nats.
        scale: Mean and deviation (D,) that the probe's features were standardised by beyond what the network sees;
            ``None`` where they are the network's.
        mixture: How far the model with the pool is believed, and how far the probe; ``None`` where nothing was compared.
        belonging: How probable it is that an example is of a known class; ``None`` unless features stay as they are, and
            there are labels enough.
    """

    probe: Probe
    reads: str
    labels: int
    test_error: float | None
    pool_error: float | None = None
    pool_loss: float | None = None
    scale: tuple[np.ndarray, np.ndarray] | None = None
    mixture: Mixture | None = None
    belonging: Belonging | None = None

    def numbers(self) -> dict[str, float]:
        """What is kept in ``metrics.csv``, by name."""
        found: dict[str, float | None] = {
            "baseline/error": self.probe.error,
            "baseline/loss": self.probe.loss,
            "baseline/test_error": self.test_error,
        }
        if self.belonging is not None:
            found["pool/own_share"] = self.belonging.share
        if self.mixture is not None:
            found |= {
                "pool/error": self.pool_error,
                "pool/loss": self.pool_loss,
                "pool/share": float(self.mixture.share),
            }
        return {name: value for name, value in found.items() if value is not None and np.isfinite(value)}


def make_ready(module: SSLModule, data: SSLData, strategy: Strategy) -> None:
    """Bring a trained module and its data to where :func:`judge` can look at them. Every process must call this.

    Args:
        module: The module, which a trainer that has ended leaves on the CPU.
        data: Its data; the test set is loaded, and seen by a frozen encoder.
        strategy: Of that trainer.
    """
    module.to(strategy.root_device)
    if data.has_test:
        data.setup("test")
    if module.encoder is not None:
        encode(module.encoder, module.views_of(data), module.features, strategy.root_device, strategy.barrier)


def judge(
    module: SSLModule,
    data: SSLData,
    initial: SSLModule | None,
    steps: int,
    precision: Any,
) -> Verdict | None:
    """The probe; and, where asked for, whether the model with the pool beats it on labels that it has not seen.

    Args:
        module: The trained module, made ready.
        data: Its data.
        initial: The module as it was before training, to be trained again without a fold of the labels; ``None`` to
            compare nothing.
        steps: θ steps of such a training.
        precision: Its precision.

    Returns:
        What came out; ``None`` where there are more labels than :data:`MOST`, which is said.
    """
    parts = [part for part in ("labeled", "validation") if len(data.sets[part])]
    labels = np.concatenate([data.sets[part].labels.numpy() for part in parts])
    if len(labels) > MOST:
        warnings.warn(
            f"baseline: no probe of {len(labels):,} labels, more than {MOST:,}, which would take minutes; --baseline "
            "none does without this line",
            stacklevel=2,
        )
        return None
    reads, read, scale = _reader(module, data)
    features = _stacked([read(part) for part in parts])
    probe = fit_probe(features, labels)
    test_error = None
    if data.has_test:
        guessed = probe.probabilities(read("test")).argmax(1)
        test_error = float((guessed != data.sets["test"].labels.numpy()).mean())
    stay = isinstance(module.model.backbone, Precomputed)
    belonging = _belonging(module, data, parts, labels) if stay else None
    verdict = Verdict(probe, reads, len(labels), test_error, scale=scale, belonging=belonging)
    if initial is None or probe.held_out is None:
        return verdict
    held_out = _held_out(module, initial, data, labels, steps, precision)
    return dataclasses.replace(
        verdict,
        pool_error=float((held_out.argmax(1) != labels).mean()),
        pool_loss=float(cross_entropy(held_out, labels).mean()),
        mixture=Mixture.of(probe.held_out, held_out, labels),
    )


def _belonging(module: SSLModule, data: SSLData, parts: list[str], labels: np.ndarray) -> Belonging | None:
    """See :attr:`Verdict.belonging`; ``labels`` are those of ``parts``."""
    size = len(data.sets["unlabeled"])
    if size > COMPARED:
        warnings.warn(
            f"own_probability: not computed, for the pool's {size:,} examples are more than {COMPARED:,}",
            stacklevel=3,
        )
        return None
    views = module.views_of(data)
    features = [in_order(views, part, module.device, _flat) for part in (*parts, "unlabeled")]
    found = Belonging(np.concatenate(features), np.concatenate((labels, np.full(size, POOL))))
    if np.isnan(found.share):
        warnings.warn(
            f"own_probability: not computed, for fewer than {NEEDED} labels could be held out; give more than one a "
            "class",
            stacklevel=3,
        )
        return None
    return found


def check_can_choose(module: SSLModule, data: SSLData, processes: int) -> None:
    """Refuse ``baseline: choose`` where the two cannot be compared, or only at great cost.

    Raises:
        UserError: Naming the option in the way.
    """
    given, mend = "baseline=choose", "or --baseline probe"
    if not isinstance(module.model.backbone, Precomputed):
        what = "a linear head on frozen features" if module.encoder is None else "a linear head alone"
        option = "--model.backbone.frozen true" if module.encoder is None else "--model.features.hidden []"
        raise UserError(
            f"{given}: is for {what}, trained again without each fold of the labels; give {option}, {mend}"
        )
    if len(data.sets["validation"]):
        raise UserError(f"{given}: compares on labels that train; give --data.num_validation 0, {mend}")
    if module.weighting.options.storage == "disk":
        raise UserError(f"{given}: needs weights in memory; give --model.weighting.storage memory, {mend}")
    if len(data.sets["labeled"]) > MOST:
        raise UserError(
            f"{given}: is for at most {MOST:,} labels, and there are {len(data.sets['labeled']):,}; give --baseline none"
        )
    if processes > 1:
        raise UserError(f"{given}: trains in one process; give --trainer.devices 1, {mend}")


def untrained(module: SSLModule) -> SSLModule:
    """A copy of a module that was not trained yet; a frozen encoder is shared."""
    shared = {} if module.encoder is None else {id(module.encoder): module.encoder}
    return copy.deepcopy(module, dict(shared))


def handed_over(verdict: Verdict) -> dict[str, Any] | None:
    """What a checkpoint keeps to predict as the verdict says: the probe's head, its share and temperatures."""
    if verdict.mixture is None:
        return None
    head = verdict.probe.classifier
    coefficients, intercepts = (part / verdict.probe.temperature for part in (head.coef_, head.intercept_))
    if verdict.scale is not None:
        coefficients = coefficients / verdict.scale[1]
        intercepts = intercepts - coefficients @ verdict.scale[0]
    weight, bias = (torch.from_numpy(np.asarray(part)).float() for part in (coefficients, intercepts))
    if len(weight) == 1:  # two classes, one row: of class 1
        weight, bias = torch.cat((-weight / 2, weight / 2)), torch.cat((-bias / 2, bias / 2))
    share, temperatures = verdict.mixture.share, list(map(float, verdict.mixture.temperatures))
    return {"weight": weight, "bias": bias, "share": float(share), "temperatures": temperatures}


def hand_over(module: SSLModule, kept: dict[str, Any]) -> None:
    """Predict by probe and model together from now on; what is trained stays as it is.

    Args:
        module: Its averaged θ gets another head.
        kept: See :func:`handed_over`.
    """
    heads = cast(Classifier, module.ema.model).heads
    own = heads["classifier"]
    heads["classifier"] = MixedHead(own, **kept).to(next(own.parameters()))


def _held_out(
    trained: SSLModule, initial: SSLModule, data: SSLData, labels: np.ndarray, steps: int, precision: Any
) -> np.ndarray:
    """Probabilities (n, C) of each labelled example by a module that was trained without its fold."""
    found = np.zeros((len(labels), initial.num_classes))
    whole = data.sets["labeled"]
    assert data.split is not None
    for kept, others in folds_of(labels):
        module, fewer = untrained(initial), copy.copy(data)
        module.weighting.learns = False  # all examples alike: a fold's model is told apart by its labels
        module.algorithm.share(trained.algorithm)
        rows = torch.from_numpy(np.sort(kept))
        part = ExampleSet(whole.source, whole.rows[rows], whole.labels[rows])
        part.features = whole.features
        fewer.sets = data.sets | {"labeled": part}
        fewer.split = dataclasses.replace(data.split, labeled=data.split.labeled[rows])
        with isolate_rng():
            bare_trainer(steps, str(trained.device), precision=precision).fit(module, fewer)
        device = trained.device
        module.to(device)
        guessed = in_order(module.views_of(data), "labeled", device, module.probabilities)
        found[others] = guessed[others] / guessed[others].sum(1, keepdims=True)
    return found


def _reader(module: SSLModule, data: SSLData) -> tuple[str, Reader, tuple[np.ndarray, np.ndarray] | None]:
    """What the probe sees of an example, how it is got, and how it was scaled."""
    views = module.views_of(data)
    flat = partial(in_order, views, device=module.device, then=_flat)
    if module.encoder is not None:
        return "frozen features", flat, None
    raw = data.sets["labeled"].__getitems__([0]).inputs
    first = views.plain(pytree.tree_map_only(Tensor, lambda x: x.to(module.device), raw))
    if not isinstance(first, Tensor):
        return "words", _word_reader(data), None
    mean, deviation = scale_of(flat("labeled"))
    vectors = isinstance(module.model.backbone, Precomputed) or first.dim() == 2
    kind = "inputs" if vectors else "pixels"
    return kind, lambda part: (flat(part) - mean) / deviation, (mean, deviation)


def standardised(features: np.ndarray) -> np.ndarray:
    """Features (n, D), each with mean 0 and deviation 1."""
    mean, deviation = scale_of(features)
    return np.asarray((features - mean) / deviation)


def _flat(inputs: Tensor) -> Tensor:
    return inputs.flatten(1)


@torch.no_grad()
def in_order(views: Views, part: str, device: torch.device, then: Callable[[Tensor], Tensor]) -> np.ndarray:
    """A function of the examples of a part, as they are, float64, in their order.

    Args:
        views: Shows them.
        part: Which list of the data.
        device: Where the function computes.
        then: Of a batch as the network takes it.
    """
    examples, size = views.data.sets[part], views.data.evaluation_batch_size
    found = []
    for start in range(0, len(examples), size):
        batch = examples.__getitems__(range(start, min(start + size, len(examples))))
        raw = pytree.tree_map_only(Tensor, lambda x: x.to(device), batch.inputs)
        found.append(then(views.plain(raw)).double().cpu().numpy())
    return np.concatenate(found)


def _word_reader(data: SSLData) -> Reader:
    """How often each word stands in a text, against how often in all of the training texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=WORDS)
    vectorizer.fit(data.sets["unlabeled"].describe() + data.sets["labeled"].describe())
    return lambda part: WORD_SCALE * vectorizer.transform(data.sets[part].describe())


def _stacked(parts: list[Any]) -> np.ndarray:
    return np.concatenate([part if isinstance(part, np.ndarray) else part.toarray() for part in parts])
