"""λ as a function of few parameters: what is known of an example anyway decides, and all influences learn how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_weighting.distributed import all_processes
from ssl_weighting.weighting.row_file import RowFile
from ssl_weighting.weighting.rules import Rule
from ssl_weighting.weighting.stats import ExampleStats, Predictions
from ssl_weighting.weighting.table import Column, Table

FEATURES = ("level", "confidence", "certainty", "agreement", "energy", "steadiness")
"""What z_u is made of, see :class:`EvidenceWeights`; ``level`` is 1 for every example that was seen."""
EVIDENCE = {"evidence": Column(0.0, width=len(FEATURES)), "steadiness": Column(0.5)}
LARGEST = 3.0
"""Standard deviations from the mean at which evidence is cut off."""
FORGETS = 0.1
"""Share of a batch in the running mean and deviation of the evidence."""
REMEMBERS = 0.75
"""Share of the past in an example's steadiness."""


class EvidenceWeights(Table):
    """λ_u = low + (high − low) · σ(φ·z_u + b): a few φ for all examples, where a table has a number for each.

    b is such that λ is ``init`` at φ = 0. The last evidence z_u of every example is kept, (6,) float32; it is 0, and so
    λ_u = ``init``, before it is seen. With p the prediction that a loss term trains and q its target, z_u holds

        level        1
        confidence   the largest probability of the guess behind q
        certainty    1 − H(p) / log C
        agreement    Σ_c √(p_c q_c), Bhattacharyya's coefficient: do prediction and target say the same?
        energy       log Σ_c exp(logit_c) (Liu et al. 2020, "Energy-based out-of-distribution detection")
        steadiness   a running mean of whether the pseudo-label was the last time's

    all but the first standardised by running statistics of the batches and cut off at 3 deviations. Of several
    loss terms of an example the last counts, as in :class:`~ssl_weighting.weighting.stats.ExampleStats`.

    A Λ step moves φ against dL/dφ, the mean over the batch of (dL_V/dλ_u) · (dλ_u/dφ), and pulls it towards 0 by
    lr · ``prior`` · φ: weight decay that Adam's scale does not touch (Loshchilov & Hutter 2019).

    Args:
        size: |U|.
        rule: How φ moves, of at most two moments.
        pull: lr · ``prior``.
        init: λ at φ = 0, between the bounds.
        bounds: (low, high), finite.
        sharded: Divide the rows among the processes.
        file: Keep the rows there and not in memory.
    """

    phi: Tensor
    moments: Tensor
    running: Tensor

    def __init__(
        self,
        size: int,
        rule: Rule,
        pull: float = 0.0,
        init: float = 1.0,
        bounds: tuple[float, float] = (0.0, 2.0),
        sharded: bool = False,
        file: RowFile | None = None,
    ) -> None:
        super().__init__(size, EVIDENCE, sharded, file)
        low, high = bounds
        self.examples, self.rule, self.pull, self.low, self.range = size, rule, pull, low, high - low
        self.offset, self.steps = math.log((init - low) / (high - init)), 0
        self.register_buffer("phi", torch.zeros(len(FEATURES)))
        self.register_buffer("moments", torch.zeros(len(FEATURES), 2))
        self.register_buffer("running", torch.zeros(3, len(FEATURES) - 1))  # of 1, x and x²

    def gather(self, rows: Tensor) -> Tensor:
        """λ of rows (B,) int64. Returns (B,)."""
        (evidence,) = self.read(rows, "evidence")
        return self.low + self.range * self._share(evidence)

    def _share(self, evidence: Tensor) -> Tensor:
        return torch.sigmoid((evidence * self.phi).sum(-1) + self.offset)

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor, examples: int | None = None) -> None:
        """Move φ by derivatives ``gradient`` (B,) in the weights of rows (B,). All processes hand over the same.

        Args:
            rows: int64: once an example and loss term.
            gradient: dL_V/dλ_u.
            examples: How many examples they are of; default B.
        """
        self.steps += 1
        slope = self.slope(rows, gradient, examples)
        moved, self.moments = self.rule.update(self.phi, slope, self.moments, self.steps)
        self.phi = moved - self.pull * self.phi

    def slope(self, rows: Tensor, gradient: Tensor, examples: int | None = None) -> Tensor:
        """dL/dφ, (6,). See :meth:`step`."""
        (evidence,) = self.read(rows, "evidence")
        share = self._share(evidence)
        return (gradient.to(share) * self.range * share * (1 - share)) @ evidence / (examples or len(rows))

    @torch.no_grad()
    def note(self, predictions: Sequence[Predictions], stats: ExampleStats) -> None:
        """Keep the evidence of what was seen; none that is not finite.

        Args:
            predictions: Of a batch, each process its own.
            stats: The statistics before this batch.
        """
        last = [stats.read(seen.rows, "pseudo_label")[0] for seen in predictions]
        for seen, label in zip(predictions, last, strict=True):
            (steadiness,) = self.read(seen.rows, "steadiness")
            same = torch.where(label < 0, 0.5, (seen.target.argmax(-1) == label.to(seen.rows)).to(steadiness))
            steadiness = torch.lerp(same.to(steadiness), steadiness, REMEMBERS)
            self._keep(all_processes(seen.rows), all_processes(evidence_of(seen, steadiness)))

    def _keep(self, rows: Tensor, raw: Tensor) -> None:
        known = raw.isfinite().all(1)
        counted = torch.where(known[:, None], raw, 0)
        ones = known[:, None].expand_as(raw).to(raw)
        batch = torch.stack((ones, counted, counted.square())).sum(1) / known.sum().clamp(min=1)
        self.running = torch.where(known.any(), torch.lerp(self.running, batch, FORGETS), self.running)
        total, first, second = self.running
        mean = first / total.clamp(min=1e-6)
        deviation = (second / total.clamp(min=1e-6) - mean.square()).clamp(min=1e-6).sqrt()
        z = ((raw - mean) / deviation).clamp(-LARGEST, LARGEST)
        z = torch.cat((torch.ones_like(z[:, :1]), z), 1)

        def change(evidence: Tensor, steadiness: Tensor) -> tuple[Tensor, Tensor]:
            keep = known.to(evidence.device)
            return (
                torch.where(keep[:, None], z.to(evidence), evidence),
                torch.where(keep, raw[:, -1].to(steadiness), steadiness),
            )

        self.update(rows, ("evidence", "steadiness"), change)

    def told(self) -> dict[str, Tensor]:
        """φ by the names of its features, for logs."""
        return dict(zip(FEATURES, self.phi, strict=True))

    # ---- checkpoints --------------------------------------------------------------------------------------

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`Table.whole`; φ and what belongs to it is the same in all processes."""
        rows, others = _apart(state)
        return super().whole(rows) | others

    def own(self, state: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`Table.own`."""
        rows, others = _apart(state)
        return super().own(rows) | others

    def fit_state(self, state: dict[str, Any], prefix: str, updates: Tensor | None) -> None:
        """Nothing is to be fitted: options decide on no shape and no value of the state."""

    def get_extra_state(self) -> dict[str, int]:
        """The number of steps, for ``state_dict``."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take the number of steps from a ``state_dict``."""
        self.steps = state["steps"]


def evidence_of(seen: Predictions, steadiness: Tensor) -> Tensor:
    """Evidence before it is standardised, (B, 5), in the order of ``FEATURES`` without ``level``.

    Args:
        seen: With its logits.
        steadiness: (B,) float32.
    """
    assert seen.logits is not None
    logits, target = seen.logits.to(steadiness), seen.target.to(steadiness).clamp(min=0)
    log_p = logits.log_softmax(-1)
    p, q = log_p.exp(), target / target.sum(-1, keepdim=True).clamp(min=1e-12)
    confidence = target.amax(-1) if seen.confidence is None else seen.confidence.to(steadiness)
    certainty = 1 + (p * log_p).sum(-1) / math.log(logits.shape[-1])
    return torch.stack((confidence, certainty, (p * q).sqrt().sum(-1), logits.logsumexp(-1), steadiness), 1)


def _apart(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows of examples, and what is no row: a few numbers may by chance be as many as there are examples."""
    rows = {key: value for key, value in state.items() if key.rpartition(".")[2] in EVIDENCE}
    return rows, {key: value for key, value in state.items() if key not in rows}
