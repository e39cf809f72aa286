"""``SSLClassifier``: the same loop as a scikit-learn estimator, on arrays of features."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from ssl_weighting.algorithms.base import Algorithm
from ssl_weighting.algorithms.ensemble import Ensemble
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.app.heads import Axes, BoundedNewton
from ssl_weighting.backbones.precomputed import Precomputed
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.module import SSLModule
from ssl_weighting.probe import cross_entropy, fit_probe, folds_of
from ssl_weighting.theta import ThetaOptions
from ssl_weighting.weighting import WeightingOptions

POOL = -1
"""The label of an example of the pool, as in scikit-learn's semi-supervised classifiers."""
LABELED, UNLABELED = 512, 4096
"""Largest batches."""
AXES = 128
"""Principal axes of the features that heads are trained on with the pool."""
DECAY, LARGEST = 0.1, 2.0
"""Weight decay of these heads, and the largest λ."""
UNKNOWNS = 6000
"""Most unknowns of a Hessian that is factorised at every Λ step: 288 MB, about a second."""


class SSLClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear classifier of features that learns from labelled and unlabelled examples, with a weight for each.

    ::

        model = SSLClassifier().fit(features, labels)      # labels: -1 for the pool
        model.predict(features)
        model.baseline_.error, model.used_pool_            # labels alone, cross-validated; did the pool help?

    All labels train, none is kept aside: weights are learned on labelled examples, each left out in turn. The model
    with the pool is kept where it beats the labels-only probe in cross-validation over the labels (by the loss), else
    the probe is handed over.

    Args:
        encoder: Turns examples into features (n, D), such as a pretrained network; ``None`` where they are features.
        algorithm: Makes the SSL method; default :class:`~ssl_weighting.algorithms.ensemble.Ensemble`.
        max_steps: θ steps, each on the whole pool up to 4,096 examples.
        random_state: Seed of the batches.

    Attributes:
        classes_: (C,), the classes.
        baseline_: The labels-only probe on all labels; see :class:`~ssl_weighting.probe.Probe`.
        used_pool_: Whether predictions are those of the model with the pool.
        cross_validated_loss_: Mean loss, nats, of labelled examples by models with the pool that were trained without
            their fold; NaN where a class has a single label.
        weights_: (|U|,) float32, λ of the examples of the pool, in order; without a pool the probe is all there is.
    """

    def __init__(
        self,
        encoder: Callable[[Any], Any] | None = None,
        algorithm: Callable[[], Algorithm] = Ensemble,
        max_steps: int = 60,
        random_state: int = 0,
    ) -> None:
        self.encoder, self.algorithm = encoder, algorithm
        self.max_steps, self.random_state = max_steps, random_state

    def fit(self, X: Any, y: Any) -> SSLClassifier:  # noqa: N803
        """Train.

        Args:
            X: n examples; (n, D) without an encoder.
            y: (n,), classes of any kind; −1, ``None`` or NaN for the pool.

        Raises:
            ValueError: If X or y is nothing to learn from.
        """
        if y is None:
            raise ValueError(
                "SSLClassifier requires y to be passed, but the target y is None; -1 stands for the pool"
            )
        features = self._features(X, fitting=True)
        labels, self.classes_ = _class_numbers(y, len(features))
        known = np.flatnonzero(labels != POOL)
        self.mean_, self.deviation_ = features.mean(0), features.std(0)
        self.deviation_[self.deviation_ < 1e-6] = 1.0
        features = self._standardised(features)
        self.baseline_ = fit_probe(features[known], labels[known])
        self.axes_ = Axes.of(features, AXES)
        features = self.axes_(features)
        self.learns_ = self._unknowns(features, labels) <= UNKNOWNS
        if not self.learns_:
            warnings.warn(
                f"SSLClassifier: {len(self.classes_)} classes and {features.shape[1]} features are too many to learn "
                "weights for: every example of the pool counts alike; give fewer features, such as those of a PCA",
                stacklevel=2,
            )
        self.module_, self.weights_ = None, np.empty(0, np.float32)
        self.cross_validated_loss_, self.used_pool_ = float("nan"), False
        if len(known) < len(labels):
            self.module_ = self._trained(features, labels)
            weights, _ = self.module_.weighting.known(torch.arange(len(labels)))
            self.weights_ = weights.float().numpy()[labels == POOL]
            held_out = self._held_out(features, labels, known)
            self.held_out_ = held_out
            if held_out is not None:
                self.cross_validated_loss_ = float(cross_entropy(held_out, labels[known]).mean())
            self.used_pool_ = bool(self.cross_validated_loss_ < self.baseline_.loss)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities (n, C), float64, in the order of ``classes_``."""
        check_is_fitted(self)
        features = self._standardised(self._features(X, fitting=False))
        if self.module_ is not None and self.used_pool_:
            return _probabilities(self.module_, self.axes_(features))
        return self.baseline_.probabilities(features)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The likeliest class of each example, (n,)."""
        best = self.predict_proba(X).argmax(1)
        return np.asarray(self.classes_[best])

    def _features(self, examples: Any, fitting: bool) -> np.ndarray:
        if self.encoder is not None:
            training = isinstance(self.encoder, nn.Module) and self.encoder.training
            if isinstance(self.encoder, nn.Module):
                self.encoder.eval()
            with torch.no_grad():
                examples = self.encoder(examples)
            if training:
                self.encoder.train()  # type: ignore[attr-defined]
            examples = examples.detach().cpu().numpy() if isinstance(examples, Tensor) else examples
        return np.asarray(validate_data(self, examples, reset=fitting, dtype=np.float64))

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return np.asarray((features - self.mean_) / self.deviation_, np.float32)

    def _held_out(self, features: np.ndarray, labels: np.ndarray, known: np.ndarray) -> np.ndarray | None:
        """Probabilities (n, C) of labelled examples by models with the pool that were trained without their fold."""
        held_out = np.zeros((len(known), len(self.classes_)))
        splits = list(folds_of(labels[known]))
        for _, others in splits:
            fewer = labels.copy()
            fewer[known[others]] = POOL
            held_out[others] = _probabilities(self._trained(features, fewer), features[known[others]])
        return held_out if splits else None

    def _unknowns(self, features: np.ndarray, labels: np.ndarray) -> int:
        """Of the last layer's Hessian over a batch, which lies in the span of its examples and the bias."""
        return int(len(self.classes_) * min(features.shape[1] + 1, sum(_batch_sizes(labels))))

    def _trained(self, features: np.ndarray, labels: np.ndarray) -> SSLModule:
        labeled, unlabeled = _batch_sizes(labels)
        algorithm = self.algorithm()
        if self.module_ is not None:
            algorithm.share(self.module_.algorithm)
        data = TensorData(
            torch.from_numpy(features),
            torch.from_numpy(labels),
            augmentations={"weak": nn.Identity()},
            num_validation=0,
            labeled_batch_size=labeled,
            unlabeled_batch_size=unlabeled,
            evaluation_batch_size=UNLABELED,
            split_seed=self.random_state,
        )
        with _quiet(), isolate_rng():
            seed_everything(self.random_state, verbose=False)
            data.seed = self.random_state
            module = SSLModule(
                len(self.classes_),
                Precomputed(features.shape[1]),
                algorithm,
                ExactLastLayer(damping="reference_code", max_dense=UNKNOWNS),
                WeightingOptions(
                    kind="per_example" if self.learns_ else "fixed",
                    inner_steps=max(1, self.max_steps // 10),
                    warmup_steps=self.max_steps // 3,
                    bounds=(0.0, LARGEST),
                ),
                ThetaOptions(self._optimizer(features, labels), decay_all=True, ema_decay=0.0),
            )
            bare_trainer(self.max_steps, "cpu").fit(module, data)
        module.trainer = None  # which holds the data
        return module.eval()


    def _optimizer(self, features: np.ndarray, labels: np.ndarray) -> Callable[[Any], torch.optim.Optimizer]:
        pool = torch.from_numpy(features)
        scale = 0.5 if len(self.classes_) == 2 else 1.0
        return partial(
            BoundedNewton,
            labeled=pool[torch.from_numpy(labels != POOL)],
            pool=pool,
            decay=DECAY,
            bound=LARGEST,
            scale=scale,
        )


def _batch_sizes(labels: np.ndarray) -> tuple[int, int]:
    return min(int((labels != POOL).sum()), LABELED), min(len(labels), UNLABELED)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's own remarks are for its command line."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@torch.no_grad()
def _probabilities(module: SSLModule, features: np.ndarray) -> np.ndarray:
    found = module.probabilities(torch.from_numpy(features)).double().numpy()
    return np.asarray(found / found.sum(1, keepdims=True))


def _class_numbers(y: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels as numbers from 0, −1 for the pool, and the classes in order."""
    given = column_or_1d(np.asarray(y, dtype=object), warn=True)
    if len(given) != count:
        raise ValueError(f"y: {len(given)} labels for {count} examples; give one each, -1 for the pool")
    known = np.array(
        [v is not None and v == v and not (v == POOL and not isinstance(v, str)) for v in given], bool
    )
    check_classification_targets(np.array(given[known].tolist()))
    classes, numbers = np.unique(np.array(given[known].tolist()), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"y: the labels hold {len(classes)} class; give examples of at least 2, and -1 for the pool"
        )
    labels = np.full(count, POOL, np.int64)
    labels[known] = numbers
    return labels, classes
