"""What of a pool belongs to the known classes: a score that no foreign label taught, and a probability from it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit

from ssl_weighting.algorithms.graph import nearest, neighbour_graph, sample_of, spread_mass
from ssl_weighting.app.checkpoints import below
from ssl_weighting.app.heads import Axes
from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file
from ssl_weighting.probe import scale_of

POOL = -1
"""The label of an example of the pool, as in scikit-learn's semi-supervised classifiers."""
LARGEST = 20_000
"""Most examples that a score is fitted on, as its cost is their square; the others are scored as new ones are."""
NEIGHBOURS, TEMPERATURE, SPREAD = 10, 0.07, 0.9
"""Of the graph, as label propagation draws it."""
AXES, RIDGE = 256, 0.1
"""Principal axes that linear scores look at, and their penalty, in units of the mean variance along an axis."""
WIDEST = 2048
"""Most features that are compared as they are; of more, as many principal axes."""
SURE_OWN, SURE_FOREIGN, FEWEST = 0.8, 0.6, 20
"""Of what is thought own, and foreign, the share that a linear score is trained on, the surest; and fewest of each."""
FOLDS, NEEDED = 5, 4
"""Parts that the labelled examples are held out in; fewest held-out examples that a probability is fitted to."""
SLOPE, STEADY, CENTRED = 4.0, 2.0, 0.05
"""Of the probability over the score's deviations, before the labels say more; and how strongly slope and offset are
held there."""


@dataclass(frozen=True)
class _Seen:
    """Examples as they are compared, whatever the labels.

    Attributes:
        plain: (n, D), of unit length: standardised features.
        axes: (n, d), coordinates on the principal axes.
        neighbours: (n, k) rows of the nearest that the score is fitted on, itself never among them.
    """

    plain: np.ndarray
    axes: np.ndarray
    neighbours: np.ndarray


@dataclass(frozen=True)
class _Fitting(_Seen):
    """Examples to fit a score on.

    Attributes:
        whitened: (n, D), of unit length: in the metric of the covariance, shrunk by its mean eigenvalue.
        graph: (n, n), of them.
    """

    whitened: np.ndarray
    graph: Any


@dataclass(frozen=True)
class _Score:
    """How much examples look like the known classes; see :class:`Belonging`.

    Attributes:
        means: (C, D), of the labelled examples of each class, of unit length.
        values: (n, 4), the scores of the examples that it was fitted on, before they are averaged over neighbours.
        scale: (2, 4), means and deviations of their averages over the pool.
        direction: (d,), of the linear score learned from the surest; 0 before it is.
        learned: (n,), that score.
        learned_scale: (2,), mean and deviation of its average over the pool; 0 and 1 before it is learned.
    """

    means: np.ndarray
    values: np.ndarray
    scale: np.ndarray
    direction: np.ndarray
    learned: np.ndarray
    learned_scale: np.ndarray

    @classmethod
    def fit(
        cls, seen: _Fitting, rows: np.ndarray, labels: np.ndarray, pool: np.ndarray, share: float | None
    ) -> _Score:
        """The score that labelled examples make.

        Args:
            seen: The n examples to fit on.
            rows: (m,) int64, the labelled ones.
            labels: (m,) int64; a class may be missing.
            pool: Rows of the pool.
            share: Of the pool, thought own; ``None`` to leave out what is learned from the score itself.
        """
        classes, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
        start = np.zeros((len(seen.plain), len(classes)))
        start[rows, numbers] = 1 / counts[numbers]
        mass = spread_mass(seen.graph, start, SPREAD).sum(1)
        others = np.setdiff1d(np.arange(len(start)), rows)
        means = _unit(np.stack([seen.plain[rows[labels == c]].mean(0) for c in classes]))
        whitened = _unit(np.stack([seen.whitened[rows[labels == c]].mean(0) for c in classes]))
        values = np.column_stack(
            (
                (seen.plain @ means.T).max(1),
                (seen.whitened @ whitened.T).max(1),
                np.log(mass + 1e-9),
                seen.axes @ _direction(seen.axes, rows, others),
            )
        )
        scale = np.stack(scale_of(_parts(seen, means, values)[pool]))
        none = np.zeros(seen.axes.shape[1], np.float32), np.zeros(len(values)), np.array([0.0, 1.0])
        score = cls(means, values, scale, *none)
        if share is None:
            return score
        order = pool[np.argsort(score(seen)[pool])]
        own = max(FEWEST, int(SURE_OWN * share * len(pool)))
        foreign = max(FEWEST, int(SURE_FOREIGN * (1 - share) * len(pool)))
        direction = _direction(seen.axes, order[-own:], order[:foreign])
        learned = seen.axes @ direction
        scale = np.stack(scale_of(_averaged(seen, direction, learned)[pool]))
        return replace(score, direction=direction, learned=learned, learned_scale=scale)

    def __call__(self, seen: _Seen) -> np.ndarray:
        """(n,) scores."""
        mean, deviation = self.scale
        score = ((_parts(seen, self.means, self.values) - mean) / deviation).mean(1)
        mean, deviation = self.learned_scale
        return np.asarray(score + (_averaged(seen, self.direction, self.learned) - mean) / deviation)


def _parts(seen: _Seen, means: np.ndarray, values: np.ndarray) -> np.ndarray:
    parts = values[seen.neighbours].mean(1)
    parts[:, 0] = (parts[:, 0] + (seen.plain @ means.T).max(1)) / 2
    return np.asarray(parts)


def _averaged(seen: _Seen, direction: np.ndarray, learned: np.ndarray) -> np.ndarray:
    return np.asarray((seen.axes @ direction + learned[seen.neighbours].mean(1)) / 2)


class Belonging:
    """The probability that an example is of a known class, of every example of a pool and of new ones.

    Nobody names foreign examples. The score sums up, each over the deviation that it has in the pool: likeness to the
    nearest class mean in standardised and in shrunk-whitened features, the mass that label propagation brings, and a
    linear score of labelled against pool examples (Elkan & Noto 2008, "Learning classifiers from only positive and
    unlabeled data"), all but half of the first averaged over the nearest neighbours; and as much as those
    together, a linear score learned from the surest own and foreign examples, averaged so with its neighbours'.

    The probability is logistic in the score z: p(z) = σ(a z + b). Own examples of the pool have the density
    f(z) p(z) / Σ f p where f is the pool's, and labelled examples are some of them; so a and b are those of the greatest
    likelihood of the labelled examples' scores (Lancaster & Imbens 1996, "Case-control studies with contaminated
    controls"; Ward et al. 2009, "Presence-only data and the EM algorithm"), under a prior that is worth a label or
    two. These scores are held out: made without the example's fold of the labels, and carried over by rank.

    Attributes:
        probability: (|U|,) float32, of the pool in its order; NaN where too few labels could be held out.
        share: Their mean, the share of the pool that is thought own.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Fit.

        Args:
            features: (n, D), labelled examples and pool; finite.
            labels: (n,) int64, −1 for the pool, which has an example at least.
        """
        known = torch.from_numpy(np.flatnonzero(labels != POOL))
        rows = sample_of(len(labels), known, LARGEST).numpy()
        given, labels = np.asarray(features, np.float32), np.asarray(labels)
        self._mean, self._deviation = scale_of(given[rows])
        standardised = (given[rows] - self._mean) / self._deviation
        self._narrow = Axes.of(standardised, WIDEST) if standardised.shape[1] > WIDEST else None
        if self._narrow is not None:
            standardised = self._narrow(standardised)
        root, self._axes = _shrunk_root(standardised)
        plain = _unit(standardised)
        graph, neighbours = neighbour_graph(torch.from_numpy(plain), NEIGHBOURS, TEMPERATURE)
        whitened = _unit(standardised @ root)
        seen = _Fitting(plain, standardised @ self._axes, neighbours.numpy(), whitened, graph)
        self._plain = torch.from_numpy(plain).half().float()  # as it is kept: a file gives what was fitted
        inside = labels[rows]
        self._fit(seen, np.flatnonzero(inside != POOL), inside[inside != POOL])
        found = np.full(len(labels), np.nan, np.float32)
        found[rows] = self._of(seen)
        rest = np.setdiff1d(np.flatnonzero(labels == POOL), rows)
        if len(rest):
            found[rest] = self(given[rest])
        self.probability = found[labels == POOL]
        self.share = float(self.probability.mean())

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Probabilities (m,) float32 of new examples' features (m, D)."""
        standardised = (np.asarray(features, np.float32) - self._mean) / self._deviation
        if self._narrow is not None:
            standardised = self._narrow(standardised)
        found = [np.empty(0, np.float32)]
        for start in range(0, len(standardised), LARGEST):
            some = standardised[start : start + LARGEST]
            plain = _unit(some)
            _, neighbours = nearest(torch.from_numpy(plain), self._plain, NEIGHBOURS)
            found.append(self._of(_Seen(plain, some @ self._axes, neighbours.numpy())))
        return np.concatenate(found)

    def _fit(self, seen: _Fitting, known: np.ndarray, labels: np.ndarray) -> None:
        pool = np.setdiff1d(np.arange(len(seen.plain)), known)
        share: float | None = None
        for _ in range(2):  # the first, without what is learned, says how much of the pool that may look at
            self._score = _Score.fit(seen, known, labels, pool, share)
            ranks = []
            for kept, held_out in _folds(labels):
                score = _Score.fit(seen, known[kept], labels[kept], pool, share)(seen)
                ranks.append((score[pool] < score[known[held_out], None]).mean(1))
            scores = self._score(seen)[pool]
            self._scale = np.stack(scale_of(scores))
            scores = (scores - self._scale[0]) / self._scale[1]
            self._line = np.full(2, np.nan)
            if sum(map(len, ranks)) < NEEDED:
                return
            self._line = presence_only(np.quantile(scores, np.concatenate(ranks)), scores)
            share = float(np.clip(expit(self._line[0] * scores + self._line[1]).mean(), 0.1, 0.9))

    @property
    def width(self) -> int:
        """D, numbers in the features of an example."""
        return len(self._mean)

    def save(self, path: Path) -> None:
        """Write all that new examples need as safetensors, two bytes a feature of each of up to :data:`LARGEST` examples.

        Raises:
            UnwritableError: No room, no permission.
        """
        from safetensors.numpy import save_file

        arrays = {
            "probability": self.probability,
            "mean": self._mean,
            "deviation": self._deviation,
            "axes": self._axes,
            "plain": self._plain.half().numpy(),
            "scale": self._scale,
            "line": self._line,
        }
        arrays |= {} if self._narrow is None else _prefixed("narrow.", vars(self._narrow))
        arrays |= _prefixed("score.", vars(self._score))
        with whole_file(path) as partial:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial)

    @classmethod
    def load(cls, path: Path) -> Belonging:
        """What :meth:`save` wrote; it gives the same probabilities, bit by bit.

        Raises:
            UserError: If the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(path)
            found = cls.__new__(cls)
            found.probability = arrays["probability"]
            found._mean, found._deviation = arrays["mean"], arrays["deviation"]
            found._axes, found._plain = arrays["axes"], torch.from_numpy(arrays["plain"]).float()
            found._scale, found._line = arrays["scale"], arrays["line"]
            narrow = below(arrays, "narrow.")
            found._narrow = Axes(**narrow) if narrow else None
            found._score = _Score(**below(arrays, "score."))
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: is no whole file ({type(error).__name__}); ssl-weighting resume "
                f"{shlex.quote(str(path.parent))} writes it again"
            ) from None
        found.share = float(found.probability.mean())
        return found

    def _of(self, seen: _Seen) -> np.ndarray:
        score = (self._score(seen) - self._scale[0]) / self._scale[1]
        return np.asarray(expit(self._line[0] * score + self._line[1]), np.float32)


def presence_only(own: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """a, b of p(z) = σ(a z + b), by the likelihood Π_i p(z_i) / mean_u p(z_u) of own examples; see :class:`Belonging`.

    Args:
        own: (n,), z of examples that are known to be own.
        pool: (m,), z of the pool, of mean 0 and deviation 1.

    Returns:
        (2,); a > 0.
    """

    def cost(line: np.ndarray) -> float:
        slope, offset = np.exp(line[0]), line[1]
        likelihood = -np.logaddexp(0, -(slope * own + offset)).sum()
        likelihood -= len(own) * np.log(expit(slope * pool + offset).mean())
        return float(STEADY * (line[0] - np.log(SLOPE)) ** 2 + CENTRED * offset**2 - likelihood)

    starts = [(np.log(slope), offset) for slope in (1.0, 4.0) for offset in (-1.0, 1.0)]
    found = min((minimize(cost, start, method="Nelder-Mead") for start in starts), key=lambda best: best.fun)
    return np.array([np.exp(found.x[0]), found.x[1]])


def _folds(labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places kept and held out, the folds of a class as even as can be.

    The only label of a class is always kept, where the probe's folds would be none at all.
    """
    fold = np.full(len(labels), -1)
    generator = np.random.default_rng(0)
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        if len(places) > 1:
            fold[places] = np.arange(len(places)) % FOLDS
    for number in range(FOLDS):
        if (fold == number).any():
            yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def _direction(axes: np.ndarray, own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(d,) of ridge regression on ±1, both sides counting alike."""
    means = [axes[rows].mean(0) for rows in (own, others)]
    centre = (means[0] + means[1]) / 2
    scatter = sum((axes[rows] - centre).T @ (axes[rows] - centre) / (2 * len(rows)) for rows in (own, others))
    penalty = RIDGE * float(np.square(axes).mean())
    return np.asarray(np.linalg.solve(scatter + penalty * np.eye(axes.shape[1]), (means[0] - means[1]) / 2))


def _shrunk_root(standardised: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D, D), Σ̃^(−1/2) up to a rotation, of Σ̃ = Σ + mean eigenvalue · I; and (D, d), the axes of most variance."""
    covariance = torch.from_numpy(standardised.T @ standardised / len(standardised)).double()
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    root = vectors / (values + values.mean() + 1e-12).sqrt()
    return root.float().numpy(), vectors[:, -AXES:].float().numpy()


def _prefixed(prefix: str, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {prefix + name: np.asarray(array) for name, array in arrays.items()}


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
