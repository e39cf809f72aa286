"""The options of ``model.weighting``: how Λ is learned, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssl_weighting.checks import require
from ssl_weighting.weighting.rules import BiasCorrection, WeightOptimizer

Kind = Literal["per_example", "evidence", "single", "fixed"]
HIGHEST = 2.0
"""The upper bound of ``kind: evidence`` where none is given."""
Storage = Literal["memory", "sharded", "disk"]


@dataclass(frozen=True)
class WeightingOptions:
    """How Λ is learned, and where it is kept.

    Args:
        kind: ``per_example``: one learned λ for every unlabelled example. ``single``: one learned λ for all (Fig. 4,
            left). ``fixed``: λ stays at ``init``: the plain SSL method, control of every comparison. ``evidence``: a
            function of the prediction's confidence, certainty, agreement with the target, energy and steadiness; its six
            parameters φ are learned by the influences of all examples together, so that few labels tell more.
        inner_steps: N, θ steps between two Λ steps (Alg. 1, line 3; App. E: 100 for UDA, 512 for FixMatch, 5 for
            IMDB).
        warmup_steps: θ steps before the first N (App. E: 20,000 of 400,000 for UDA, 1,000 of 10,000 for IMDB).
        lr: η, step size of Λ (Alg. 1, line 12; App. E: 0.01).
        optimizer: ``masked_adam``: M-Adam (Alg. 2). ``sgd`` and ``adam`` (dense, every row moves) are its rivals in
            the ablation (Sec. 4.3); the synthetic sets use ``sgd`` (Sec. 4.1). ``evidence`` has no rows to mask, and
            moves by ``adam`` where ``masked_adam`` is asked for.
        bias_correction: M-Adam's: ``global`` as Alg. 2 is printed, ``per_example`` as in the authors' code.
        init: Initial λ (App. E: 1; 5 for UDA with 250 labels). From 0, an example has to earn its weight before it is
            learned from.
        weights: A run's ``weights.parquet``, of the same unlabelled examples, that λ begin from instead of ``init``; with
            ``kind: fixed`` they stay there, as in `ssl-weighting refit`.
        bounds: Smallest and largest λ. The paper: above 0; the authors' code: 0 to 2, and so ``evidence`` where the
            largest is infinite.
        prior: Of ``evidence``: how strongly φ is pulled towards 0, where λ is ``init`` for all, as a weight decay. Under
            Adam φ stays below 1 / ``prior``.
        update_masked: Also move examples whose loss is masked out in the batch, by the influence that they would have
            unmasked. The paper's Alg. 2 leaves them, the authors' code moves them.
        storage: Where Λ, M-Adam's moments and the statistics of each example are kept. ``memory``: whole, with every
            process. ``sharded``: divided among the processes. ``disk``: in a file ``weights.rows`` in the run's
            folder, of which only the rows of a batch are read. The numbers are the same.
        batchnorm: Batch norm's statistics inside a Λ step: ``eval``, the running ones, or ``train``, the batch's, as
            in the authors' code: examples then depend on each other. Running statistics never change in a Λ step.

    Raises:
        UserError: On an argument out of range, naming it.
    """

    kind: Kind = "per_example"
    inner_steps: int = 100
    warmup_steps: int = 0
    lr: float = 0.01
    optimizer: WeightOptimizer = "masked_adam"
    bias_correction: BiasCorrection = "global"
    init: float = 1.0
    weights: Path | None = None
    bounds: tuple[float, float] = (0.0, float("inf"))
    prior: float = 0.1
    update_masked: bool = False
    storage: Storage = "memory"
    batchnorm: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        key, (low, high) = "model.weighting", self.bounds
        require(f"{key}.inner_steps", self.inner_steps, self.inner_steps >= 1, "must be at least 1")
        require(f"{key}.warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "must be at least 0")
        require(f"{key}.lr", self.lr, self.lr > 0, "must be above 0; kind: fixed leaves λ alone")
        evidence = self.kind == "evidence"
        high = HIGHEST if evidence and high == float("inf") else high
        fine = 0 <= low < high
        require(f"{key}.bounds", [low, high], fine, "must be [low, high], 0 ≤ low < high")
        require(f"{key}.init", self.init, low <= self.init <= high, f"must lie in [{low}, {high}]")
        if evidence:
            between = f"with kind: evidence must lie between the bounds {low:g} and {high:g}; give 1, or other bounds"
            require(f"{key}.init", self.init, low < self.init < high, between)
            own = "kind: evidence keeps no weight of an example's own; give kind: per_example, or leave weights out"
            require(f"{key}.weights", self.weights, self.weights is None, own)
        require(
            f"{key}.prior",
            self.prior,
            0 <= self.prior * self.lr < 1,
            "must be at least 0, and lr · prior below 1",
        )
        everywhere = self.storage == "disk" and self.optimizer == "adam" and not evidence
        require(f"{key}.storage", "disk", not everywhere, "optimizer: adam moves every row; use masked_adam")
        object.__setattr__(self, "bounds", (float(low), float(high)))
