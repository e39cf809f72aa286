"""The plainest use of the labels beside every run, and the choice between it and the model with the pool."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils import _pytree as pytree

from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.base import SymmetricBinaryHead
from ssl_weighting.backbones.precomputed import Precomputed
from ssl_weighting.data import ExampleSet, SSLData
from ssl_weighting.distributed import process_count
from ssl_weighting.errors import UserError
from ssl_weighting.module import SSLModule
from ssl_weighting.probe import Probe, cross_entropy, fit_probe, folds_of, pool_pays

MOST = 2000
"""Labels of more examples than this are not probed: cross-validation would take minutes."""
WORD_SCALE = 30.0
"""What rows of word frequencies, of length 1, are multiplied by, for the probe's penalties."""

Reader = Callable[[str], Any]
"""Features (n, D), an array or a sparse matrix, of a part of the data."""


@dataclass(frozen=True)
class Verdict:
    """What the pool was worth.

    Attributes:
        probe: The labels-only probe on all labels.
        reads: What it saw: ``frozen features``, ``features``, ``pixels``, ``inputs`` or ``words``.
        labels: How many labels it was trained on.
        test_error: Its error on the test set, a share; ``None`` without one.
        pool_error: Cross-validated error of the model with the pool, where the two were compared.
        pool_loss: Its cross-validated cross-entropy, nats.
        used_pool: Whether the model with the pool is handed over.
    """

    probe: Probe
    reads: str
    labels: int
    test_error: float | None
    pool_error: float | None = None
    pool_loss: float | None = None
    used_pool: bool = True

    def numbers(self) -> dict[str, float]:
        """What is kept in ``metrics.csv``, by name."""
        found: dict[str, float | None] = {
            "baseline/error": self.probe.error,
            "baseline/loss": self.probe.loss,
            "baseline/test_error": self.test_error,
        }
        if self.pool_loss is not None:
            found |= {
                "pool/error": self.pool_error,
                "pool/loss": self.pool_loss,
                "pool/used": float(self.used_pool),
            }
        return {name: value for name, value in found.items() if value is not None and np.isfinite(value)}


def judge(
    module: SSLModule, data: SSLData, initial: SSLModule | None, steps: int, precision: Any
) -> Verdict | None:
    """The probe; and, where asked for, whether the model with the pool beats it on labels that it has not seen.

    Args:
        module: The trained module.
        data: Its data, set up.
        initial: The module as it was before training, to be trained again without a fold of the labels; ``None`` to
            compare nothing.
        steps: θ steps of such a training.
        precision: Its precision.

    Returns:
        What came out; ``None`` where there are more labels than :data:`MOST`.
    """
    parts = [part for part in ("labeled", "validation") if len(data.sets[part])]
    labels = np.concatenate([data.sets[part].labels.numpy() for part in parts])
    if len(labels) > MOST:
        return None
    reads, read = _reader(module, data)
    features = _stacked([read(part) for part in parts])
    probe = fit_probe(features, labels)
    test_error = None
    if data.has_test:
        data.setup("test")
        guessed = probe.probabilities(read("test")).argmax(1)
        test_error = float((guessed != data.sets["test"].labels.numpy()).mean())
    verdict = Verdict(probe, reads, len(labels), test_error)
    if initial is None or probe.held_out is None:
        return verdict
    held_out = _held_out(initial, data, labels, steps, precision)
    return dataclasses.replace(
        verdict,
        pool_error=float((held_out.argmax(1) != labels).mean()),
        pool_loss=float(cross_entropy(held_out, labels).mean()),
        used_pool=pool_pays(held_out, probe.held_out, labels),
    )


def check_can_choose(module: SSLModule, data: SSLData, devices: Any) -> None:
    """Refuse ``baseline: choose`` where the two cannot be compared, or only at great cost.

    Raises:
        UserError: Naming the option in the way.
    """
    given, mend = "baseline=choose", "or --baseline probe"
    if module.encoder is None and not isinstance(module.model.backbone, Precomputed):
        raise UserError(
            f"{given}: trains again without each fold of the labels; give --model.backbone.frozen true, {mend}"
        )
    if len(data.sets["validation"]):
        raise UserError(f"{given}: compares on labels that train; give --data.num_validation 0, {mend}")
    if module.weighting.options.storage == "disk":
        raise UserError(f"{given}: needs weights in memory; give --model.weighting.storage memory, {mend}")
    if devices not in ("auto", 1, "1", [0]) or process_count() > 1:
        raise UserError(f"{given}: trains in one process; give --trainer.devices 1, {mend}")


def untrained(module: SSLModule) -> SSLModule:
    """A copy of a module that was not trained yet; a frozen encoder is shared."""
    shared = {} if module.encoder is None else {id(module.encoder): module.encoder}
    return copy.deepcopy(module, dict(shared))


def head_of(module: SSLModule, probe: Probe) -> dict[str, Tensor]:
    """The probe as the module's linear head: ``weight`` (R, D) and ``bias`` (R,)."""
    weight, bias = (torch.from_numpy(np.asarray(part)).float() for part in _coefficients(probe))
    if isinstance(module.model.heads["classifier"], SymmetricBinaryHead):  # p(class 0) = sigmoid(2f)
        weight, bias = -weight / 2, -bias / 2
    elif len(weight) == 1:  # two classes, one row: of class 1
        weight, bias = torch.cat((-weight / 2, weight / 2)), torch.cat((-bias / 2, bias / 2))
    return {"weight": weight, "bias": bias}


def hand_over(module: SSLModule, head: dict[str, Tensor]) -> None:
    """Predict by another linear head from now on; what is trained stays as it is."""
    own: Any = module.ema.model.heads["classifier"]  # type: ignore[union-attr,index]
    for name, value in head.items():
        parameter = getattr(own, name)
        parameter.data = value.to(parameter)  # not copied into it: it can be θ's own memory


def _coefficients(probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    return probe.classifier.coef_, probe.classifier.intercept_


def _held_out(
    initial: SSLModule, data: SSLData, labels: np.ndarray, steps: int, precision: Any
) -> np.ndarray:
    """Probabilities (n, C) of each labelled example by a module that was trained without its fold."""
    found = np.zeros((len(labels), initial.num_classes))
    whole = data.sets["labeled"]
    assert data.split is not None
    device = str(next(initial.model.parameters()).device)
    for kept, others in folds_of(labels):
        module, fewer = untrained(initial), copy.copy(data)
        rows = torch.from_numpy(np.sort(kept))
        part = ExampleSet(whole.source, whole.rows[rows], whole.labels[rows])
        part.features = whole.features
        fewer.sets = data.sets | {"labeled": part}
        fewer.split = dataclasses.replace(data.split, labeled=data.split.labeled[rows])
        with isolate_rng():
            bare_trainer(steps, device, precision=precision).fit(module, fewer)
        guessed = _in_order(module, data, "labeled", module.probabilities)
        found[others] = guessed[others] / guessed[others].sum(1, keepdims=True)
    return found


def _reader(module: SSLModule, data: SSLData) -> tuple[str, Reader]:
    """What the probe sees of an example, and how it is got."""
    if module.encoder is not None:
        return "frozen features", partial(_in_order, module, data, then=_flat)
    first = module.views_of(data).plain(data.sets["labeled"].__getitems__([0]).inputs)
    if not isinstance(first, Tensor):
        return "words", _word_reader(data)
    reads = "features" if isinstance(module.model.backbone, Precomputed) else "pixels"
    sample = _in_order(module, data, "labeled", _flat)
    mean, deviation = sample.mean(0), sample.std(0)
    deviation[deviation < 1e-6] = 1.0
    return (
        reads if first.dim() != 2 or reads == "features" else "inputs",
        lambda part: (_in_order(module, data, part, _flat) - mean) / deviation,
    )


def _flat(inputs: Tensor) -> Tensor:
    return inputs.flatten(1)


@torch.no_grad()
def _in_order(module: SSLModule, data: SSLData, part: str, then: Callable[[Tensor], Tensor]) -> np.ndarray:
    """A function of the examples of a part, as they are, float64, in their order."""
    examples, size, views = data.sets[part], data.evaluation_batch_size, module.views_of(data)
    found = []
    for start in range(0, len(examples), size):
        batch = examples.__getitems__(range(start, min(start + size, len(examples))))
        raw = pytree.tree_map_only(Tensor, lambda x: x.to(module.device), batch.inputs)
        found.append(then(views.plain(raw)).double().cpu().numpy())
    return np.concatenate(found)


def _word_reader(data: SSLData) -> Reader:
    """How often each word stands in a text, against how often in all of the training texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True)
    vectorizer.fit(data.sets["unlabeled"].describe() + data.sets["labeled"].describe())
    return lambda part: WORD_SCALE * vectorizer.transform(data.sets[part].describe())


def _stacked(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    from scipy.sparse import vstack

    return vstack(parts).tocsr()
