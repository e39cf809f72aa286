"""MixMatch (Berthelot et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_weighting import checks
from ssl_weighting.algorithms.base import (
    Context,
    Labeled,
    RampedAlgorithm,
    Unlabeled,
    paused_statistics,
    sharpened,
    supervised_term,
    unlabeled_term,
)
from ssl_weighting.errors import UserError
from ssl_weighting.protocols import Forward, Model
from ssl_weighting.terms import SQUARED_ERROR, LossTerm


class MixMatch(RampedAlgorithm):
    """Everything is mixed with something else, images and targets alike, and compared to its mixed target.

    With K weak views u_k of an unlabelled example (Berthelot et al. 2019, Sec. 3):

        q = sharpen( Σ_k p(y | u_k) / K, T )        sharpen(p, T) = p^(1/T) / Σ p^(1/T)         (Eq. 6 and 7)
        (x', y') = s · (x, y) + (1 − s) · (x̃, ỹ)    s = max(s₀, 1 − s₀),  s₀ ~ Beta(α, α)       (Eq. 8 to 11)
        H(y', p(y | x'))                            of the mixed labelled examples
        w(t) · ‖q' − p(y | u'_k)‖² / C              of the mixed unlabelled ones, averaged over k

    (x̃, ỹ) is any example of the batch, labelled or not, in random order; s is drawn for each example by
    itself.

    Which λ a mixed example touches: that of its primary, the one with the share s ≥ 1/2. λ multiplies the
    whole loss of the mixed example; the partner's λ is not touched by it. A mixed example whose primary is
    labelled belongs to the labelled loss, of weight 1, whatever is mixed in.

    One forward pass makes the guesses, without gradient and without moving batch norm's running statistics,
    and one sees all mixed images.

    Args:
        temperature: T.
        alpha: α of the Beta distribution (0.75 for CIFAR-10 and SVHN, 0.25 for SVHN with its extra images).
        coefficient: w after its ramp (75 for CIFAR-10, 250 for SVHN).
        ramp: Share of training over which w rises linearly from 0; 0 for none. Google's 1,024 kibi-images are
            1/64 of its runs.
        num_views: K, weak views of every unlabelled example.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        alpha: float = 0.75,
        coefficient: float = 75.0,
        ramp: float = 1 / 64,
        num_views: int = 2,
    ) -> None:
        super().__init__(coefficient, ramp)
        self.temperature = checks.positive("model.algorithm.temperature", temperature, "1 for no sharpening")
        self.alpha = checks.positive("model.algorithm.alpha", alpha)
        if num_views < 1:
            raise UserError(f"model.algorithm.num_views={num_views}: must be at least 1")
        self.views = {f"weak_{k + 1}": ("weak",) for k in range(num_views)}

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        views = [unlabeled.views[name] for name in self.views]
        with torch.no_grad(), paused_statistics(model):
            guess = torch.stack([view.probabilities() for view in model.joint(*views)]).mean(0)
        target = sharpened(guess, self.temperature)
        known, *guessed = mixed_outputs(model, labeled, views, target, self.alpha)
        return [
            supervised_term(*known),
            *[
                unlabeled_term(
                    f"mixed_{name}",
                    output,
                    mixed_target,
                    SQUARED_ERROR,
                    unlabeled.row,
                    scale=self.scale(context) / len(views),
                    confidence=guess.amax(-1),
                )
                for name, (output, mixed_target) in zip(self.views, guessed, strict=True)
            ],
        ]


def mixed_outputs(
    model: Model, labeled: Labeled, views: Sequence[Tensor], target: Tensor, alpha: float
) -> list[tuple[Forward, Tensor]]:
    """What the network makes of all examples, mixed in one pass, each with its mixed target.

    Args:
        model: The classifier.
        labeled: D'.
        views: Of U', K views (B, ...).
        target: Of every view of U', (B, C).
        alpha: Of the Beta distribution.

    Returns:
        K + 1 outputs and targets, the labelled examples' first.
    """
    sizes = [len(labeled.target), *[len(target)] * len(views)]
    inputs = torch.cat([labeled.inputs, *views])
    targets = torch.cat([labeled.target, *[target] * len(views)])
    share, partner = draw_mixing(len(inputs), alpha, targets)
    outputs = model.joint(*torch.split(mixed(inputs, share, partner), sizes))
    return list(zip(outputs, torch.split(mixed(targets, share, partner), sizes), strict=True))


def draw_mixing(size: int, alpha: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Share of itself that every example keeps, and the example that it is mixed with.

    Args:
        size: n, number of examples.
        alpha: Of the Beta distribution.
        like: Gives dtype and device.

    Returns:
        Shares (n,) in [1/2, 1], and a permutation (n,) int64.
    """
    concentration = torch.full((size,), alpha, dtype=like.dtype, device=like.device)
    share = torch.distributions.Beta(concentration, concentration, validate_args=False).sample()
    return torch.maximum(share, 1 - share), torch.randperm(size, device=like.device)


def mixed(x: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """Examples x (n, ...) mixed: share · x + (1 − share) · x[partner]."""
    return torch.lerp(x[partner], x, share.to(x.dtype).view(-1, *[1] * (x.dim() - 1)))
