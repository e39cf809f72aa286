"""``SSLClassifier``: the same loop as a scikit-learn estimator, on arrays of features."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

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
from ssl_weighting.app.belonging import POOL, Belonging
from ssl_weighting.app.heads import UNKNOWNS, Axes, BoundedNewton
from ssl_weighting.app.mixture import Mixture
from ssl_weighting.backbones.precomputed import Precomputed
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.module import SSLModule
from ssl_weighting.probe import cross_entropy, fit_probe, folds_of, scale_of
from ssl_weighting.theta import ThetaOptions
from ssl_weighting.weighting import WeightingOptions

T = TypeVar("T")
LABELED, UNLABELED = 512, 4096
"""Largest batches."""
AXES = 256
"""Principal axes of the features that heads are trained on with the pool."""
DECAY, LARGEST = 1 / 1280, 2.0
"""Weight decay of these heads for each standardised feature that there was, as logits grow with their number; and the
largest λ."""


class SSLClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear classifier of features that learns from labelled and unlabelled examples, with a weight for each.

    ::

        model = SSLClassifier().fit(features, labels)      # labels: -1 for the pool
        model.predict(features)
        model.baseline_.error, model.used_pool_            # labels alone, cross-validated; did the pool help?

    All labels train, none is kept aside: weights are learned on labelled examples, each left out in turn. How far the
    model with the pool is believed, and how far the labels-only probe, is told by cross-validation over the labels: of
    mixtures of both, calibrated, the one of least loss. Where that is the probe alone, it is handed over as it is.
    Heads are trained on the principal axes of the features, and in cross-validation with all weights 1.

    Args:
        encoder: Turns examples into features (n, D), such as a pretrained network; ``None`` where they are features.
        algorithm: Makes the SSL method; default :class:`~ssl_weighting.algorithms.ensemble.Ensemble`.
        max_steps: θ steps, each on the whole pool up to 4,096 examples.
        random_state: Seed of the batches.
        learn_weights: Learn a weight for every example of the pool; else all are 1.
        choose: Let the labels choose between the probe and the model with the pool; else it is the latter.

    Attributes:
        classes_: (C,), the classes.
        baseline_: The labels-only probe on all labels; see :class:`~ssl_weighting.probe.Probe`.
        pool_share_: How much of a prediction the model with the pool makes, from 0 to 1.
        used_pool_: Whether it has a share.
        mixture_: Of probe and model with the pool; ``None`` where nothing was to choose, or nothing to choose by.
        cross_validated_loss_: Mean loss, nats, of labelled examples by models with the pool that were trained without
            their fold; NaN where a class has a single label.
        weights_: (|U|,) float32, λ of the examples of the pool, in order; without a pool the probe is all there is.
        own_probability_: (|U|,) float32, the probability that an example of the pool is of one of the classes; see
            :class:`~ssl_weighting.app.belonging.Belonging`.
    """

    def __init__(
        self,
        encoder: Callable[[Any], Any] | None = None,
        algorithm: Callable[[], Algorithm] = Ensemble,
        max_steps: int = 40,
        random_state: int = 0,
        learn_weights: bool = True,
        choose: bool = True,
    ) -> None:
        self.encoder, self.algorithm = encoder, algorithm
        self.max_steps, self.random_state = max_steps, random_state
        self.learn_weights, self.choose = learn_weights, choose

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
        self.mean_, self.deviation_ = scale_of(features)
        features = self._standardised(features)
        self.baseline_ = fit_probe(features[known], labels[known])
        self.belonging_ = Belonging(features, labels) if len(known) < len(labels) else None
        self.own_probability_ = (
            np.empty(0, np.float32) if self.belonging_ is None else self.belonging_.probability
        )
        self.axes_ = Axes.of(features, AXES)
        features = self.axes_(features)
        fits = self._unknowns(features, labels) <= UNKNOWNS
        self.learns_ = self.learn_weights and fits
        if not fits and self.learn_weights:
            warnings.warn(
                f"SSLClassifier: {len(self.classes_)} classes and {features.shape[1]} features are too many to learn "
                "weights for: every example of the pool counts alike; give fewer features, such as those of a PCA",
                stacklevel=2,
            )
        self.module_, self.weights_ = None, np.empty(0, np.float32)
        self.cross_validated_loss_, self.pool_share_ = float("nan"), 0.0
        self.mixture_: Mixture | None = None
        if len(known) < len(labels):
            self.module_ = self._trained(features, labels, self.learns_)
            weights, _ = self.module_.weighting.known(torch.arange(len(labels)))
            self.weights_ = weights.float().numpy()[labels == POOL]
            self._choose(features, labels, known)
        self.used_pool_ = self.pool_share_ > 0
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities (n, C), float64, in the order of ``classes_``."""
        check_is_fitted(self)
        features = self._new(X)
        if not self.used_pool_:
            return self.baseline_.probabilities(features)
        assert self.module_ is not None
        pool = _probabilities(self.module_, self.axes_(features))
        return pool if self.mixture_ is None else self.mixture_(self.baseline_.probabilities(features), pool)

    def pool_probabilities(self, X: Any) -> np.ndarray:  # noqa: N803
        """Class probabilities (n, C) by the model with the pool alone, whatever the labels chose.

        Raises:
            ValueError: If there was no pool.
        """
        check_is_fitted(self)
        return _probabilities(self._of_pool(self.module_), self.axes_(self._new(X)))

    def own_probability(self, X: Any) -> np.ndarray:  # noqa: N803
        """The probability (n,) float32 that a new example is of one of the classes.

        Raises:
            ValueError: If there was no pool.
        """
        check_is_fitted(self)
        return self._of_pool(self.belonging_)(self._new(X))

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

    @staticmethod
    def _of_pool(learned: T | None) -> T:
        if learned is None:
            raise ValueError("SSLClassifier: there was no pool; give examples with label -1")
        return learned

    def _new(self, examples: Any) -> np.ndarray:
        return self._standardised(self._features(examples, fitting=False))

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return np.asarray((features - self.mean_) / self.deviation_, np.float32)

    def _choose(self, features: np.ndarray, labels: np.ndarray, known: np.ndarray) -> None:
        """How far to believe the model with the pool."""
        if not self.choose:
            self.pool_share_ = 1.0
            return
        held_out = self._held_out(features, labels, known)
        if held_out is None or self.baseline_.held_out is None:
            return
        self.cross_validated_loss_ = float(cross_entropy(held_out, labels[known]).mean())
        self.mixture_ = Mixture.of(self.baseline_.held_out, held_out, labels[known])
        self.pool_share_ = self.mixture_.share

    def _held_out(self, features: np.ndarray, labels: np.ndarray, known: np.ndarray) -> np.ndarray | None:
        """Probabilities (n, C) of labelled examples by models with the pool that were trained without their fold."""
        held_out = np.zeros((len(known), len(self.classes_)))
        splits = list(folds_of(labels[known]))
        for _, others in splits:
            fewer = labels.copy()
            fewer[known[others]] = POOL
            held_out[others] = _probabilities(
                self._trained(features, fewer, learns=False), features[known[others]]
            )
        return held_out if splits else None

    def _unknowns(self, features: np.ndarray, labels: np.ndarray) -> int:
        """Of the last layer's Hessian over a batch, which lies in the span of its examples and the bias."""
        return int(len(self.classes_) * min(features.shape[1] + 1, sum(_batch_sizes(labels))))

    def _trained(self, features: np.ndarray, labels: np.ndarray, learns: bool) -> SSLModule:
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
                    kind="per_example" if learns else "fixed",
                    inner_steps=max(1, self.max_steps // 6),
                    warmup_steps=self.max_steps // 3,
                    lr=0.1,
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
            decay=DECAY * len(self.mean_),
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
