"""The baseline that everything has to beat: a linear probe on features, trained on all labels and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_weighting.errors import UserError

PENALTIES = tuple(10.0**exponent for exponent in np.arange(-2.0, 3.5, 0.5))
"""Weight decays that cross-validation chooses among, for features of deviation 1."""
TEMPERATURES = tuple(2.0**exponent for exponent in np.arange(-3.0, 3.25, 0.25))
"""What logits may be divided by."""
ALONE = 1.0
"""The weight decay where a class has a single label, so that there is nothing to cross-validate with."""
FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """A linear probe.

    Attributes:
        classifier: scikit-learn's ``LogisticRegression``, trained on all labels.
        penalty: Its weight decay δ: it minimises mean loss + δ/2 · |W|².
        temperature: What its logits are divided by, so that held-out probabilities have the least loss.
        held_out: (n, C), probabilities of each labelled example by a probe that was trained without its fold; ``None``
            where a class has a single label.
        error: Cross-validated error, a share; NaN where ``held_out`` is ``None``.
        loss: Cross-validated cross-entropy, nats; NaN likewise.
    """

    classifier: Any
    penalty: float
    temperature: float
    held_out: np.ndarray | None
    error: float
    loss: float

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Class probabilities (m, C) of features (m, D)."""
        return cooled(np.asarray(self.classifier.predict_proba(features)), self.temperature)


def folds_of(labels: np.ndarray, folds: int = FOLDS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to train on and rows held out, stratified, the same for the same labels.

    Args:
        labels: (n,) int64.
        folds: How many; fewer where a class has fewer labels, none where one has a single label.
    """
    from sklearn.model_selection import StratifiedKFold  # slow to import

    number = min(folds, int(np.bincount(labels).min()))
    if number >= 2:
        splitter = StratifiedKFold(number, shuffle=True, random_state=0)
        yield from splitter.split(np.zeros((len(labels), 1)), labels)


def fit_probe(features: np.ndarray, labels: np.ndarray) -> Probe:
    """Train a probe; its penalty is the one of least cross-validated loss after calibration.

    A strong penalty makes small logits, of which the loss is large however right they are: what is asked for is the
    best direction, and its scale is the temperature's. With fewer than five labels in a class nothing is calibrated.

    Args:
        features: (n, D), each of mean 0 and deviation 1 or about.
        labels: (n,) int64, every class from 0 to C − 1 among them.

    Raises:
        UserError: If there are fewer than two classes, or one without a label.
    """
    counts = np.bincount(labels)
    if len(counts) < 2 or not counts.all():
        raise UserError(f"labels: {counts.tolist()} of the classes; give at least one of each of two classes")
    from scipy.special import softmax  # slow to import

    splits = list(folds_of(labels))
    if not splits:
        return Probe(_trained(features, labels, ALONE), ALONE, 1.0, None, float("nan"), float("nan"))
    within = _span(features)
    held_out = np.zeros((len(PENALTIES), len(labels), len(counts)))
    for rows, others in splits:
        weights = np.zeros((len(counts), within.shape[1] + 1))
        for number, penalty in reversed([*enumerate(PENALTIES)]):  # each begins where a stronger one ended
            weights = _minimised(weights, within[rows], labels[rows], penalty)
            held_out[number, others] = softmax(within[others] @ weights[:, :-1].T + weights[:, -1], 1)
    few = len(splits) < FOLDS  # all of them right, say, would call for the sharpest probabilities there are
    temperatures = [1.0 if few else calibrated(found, labels) for found in held_out]
    known = [cooled(found, t) for found, t in zip(held_out, temperatures, strict=True)]
    losses = [float(cross_entropy(found, labels).mean()) for found in known]
    best = int(np.argmin(losses))
    error = float((known[best].argmax(1) != labels).mean())
    classifier = _trained(features, labels, PENALTIES[best])
    return Probe(classifier, PENALTIES[best], temperatures[best], known[best], error, losses[best])


def calibrated(held_out: np.ndarray, labels: np.ndarray) -> float:
    """The temperature under which held-out probabilities (n, C) of labelled examples have the least loss."""
    return float(min(TEMPERATURES, key=lambda t: cross_entropy(cooled(held_out, t), labels).mean()))


def cooled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T), (n, C) float64."""
    from scipy.special import softmax  # slow to import

    logs = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-30))
    return np.asarray(softmax(logs / temperature, 1))


def scale_of(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column of (n, D) or (n,); 1 for a deviation of next to nothing."""
    deviation = features.std(0)
    return features.mean(0), np.where(deviation < 1e-6, 1.0, deviation).astype(deviation.dtype)


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """−log p of the label, nats, (n,), of probabilities (n, C) and labels (n,)."""
    chosen = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
    return np.asarray(-np.log(np.maximum(chosen, 1e-9)))


def _span(features: np.ndarray) -> np.ndarray:
    """Features (n, D) in coordinates (n, min(n, D)) of the span that they lie in, as a penalised head does; exact."""
    n, width = features.shape
    turned = np.linalg.qr(features.T.astype(np.float64))[1].T if n < width else features
    return np.ascontiguousarray(turned, np.float64)


def _minimised(start: np.ndarray, features: np.ndarray, labels: np.ndarray, penalty: float) -> np.ndarray:
    """Head (C, d + 1), the bias last and without penalty, of least mean loss + penalty/2 · |W|².

    Args:
        start: Where to begin, (C, d + 1).
        features: (n, d) float64.
        labels: (n,) int64.
        penalty: δ.
    """
    from scipy.optimize import minimize  # slow to import

    rows, count = np.arange(len(labels)), len(labels)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        head = flat.reshape(start.shape)
        logits = features @ head[:, :-1].T + head[:, -1]
        logits -= logits.max(1, keepdims=True)
        exponential = np.exp(logits)
        total = exponential.sum(1)
        loss = (np.log(total) - logits[rows, labels]).sum() / count
        pull = exponential / total[:, None]
        pull[rows, labels] -= 1
        gradient = np.empty_like(head)
        gradient[:, :-1] = pull.T @ features / count + penalty * head[:, :-1]
        gradient[:, -1] = pull.sum(0) / count
        return float(loss + penalty / 2 * np.square(head[:, :-1]).sum()), gradient.ravel()

    found = minimize(
        objective, start.ravel(), jac=True, method="L-BFGS-B", options={"gtol": 1e-4, "maxiter": 1000}
    )
    return np.asarray(found.x.reshape(start.shape))


def _trained(features: np.ndarray, labels: np.ndarray, penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression  # slow to import

    # scikit-learn minimises |W|²/2 + C · Σ loss.
    return LogisticRegression(C=1 / (penalty * len(labels)), max_iter=1000).fit(features, labels)
