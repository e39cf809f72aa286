"""ReMixMatch (Berthelot et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl_weighting import checks
from ssl_weighting.algorithms.base import (
    Context,
    Labeled,
    RampedAlgorithm,
    Show,
    Unlabeled,
    one_hot_like,
    paused_statistics,
    sharpened,
    supervised_term,
    unlabeled_term,
    update_rates,
)
from ssl_weighting.algorithms.mixmatch import mixed_outputs
from ssl_weighting.augment import CTAugment
from ssl_weighting.distributed import all_processes
from ssl_weighting.errors import UserError
from ssl_weighting.protocols import Model
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm

HISTORY = 128
"""Batches over which the network's mean prediction is taken, as in Google's code."""
DATA_DECAY = 0.999
"""Decay of the running average of the labelled examples' classes, as in Google's code."""


class UncutCTAugment(CTAugment):
    """CTAugment as in ReMixMatch, without the cutout that FixMatch ends it with."""

    def augment(self, images: Tensor) -> Tensor:
        """Augment each image by operations drawn from the rates."""
        return self._augment(images, *self.draw(len(images)))


class ReMixMatch(RampedAlgorithm):
    """MixMatch with distribution alignment, augmentation anchoring and a rotation task.

    With one weak view u₀ and K strong views u_k of an unlabelled example (Berthelot et al. 2020, Alg. 1):

        q = sharpen( normalise( p(y | u₀) · p_data / p_model ), T )   distribution alignment (Sec. 3.1)
        (x', y') = s · (x, y) + (1 − s) · (x̃, ỹ)                      mixing, as in MixMatch, of all views
        H(y', p(y | x'))                                              mixed labelled examples
        w_u(t) · H(q', p(y | u'_k))                                   mixed views, mean over k = 0 … K
        w_1(t) · H(q, p(y | u₁))                                      first strong view, unmixed (Sec. 3.3)
        w_r · H(r, p(r | rotate(u₁, r)))                              r one of four quarter turns

    p_model is the mean prediction on the weak views of the last 128 batches, p_data a running average of the
    labelled examples' classes; both are used before the batch at hand counts. Labelled examples are augmented
    strongly too, and after every θ step CTAugment's rates learn from them.

    Which λ a mixed example touches: its primary's, as in
    :class:`~ssl_weighting.algorithms.mixmatch.MixMatch`. The rotation loss has a head of its own: λ weighs
    it, but an influence through the classifier's last layer is 0.

    Batch norm's running statistics follow the forward pass of the mixed images; the guess, the first strong
    view and the rotated images leave them alone.

    Args:
        num_strong: K (8; 1 with 40 labels).
        temperature: T.
        alpha: α of the Beta distribution.
        coefficient: w_u after its ramp.
        strong_coefficient: w_1 after its ramp; 0 leaves the loss out.
        rotation_coefficient: w_r, not ramped (2 or 3 with 40 labels); 0 leaves the loss and its head out.
        ramp: Share of training over which w_u and w_1 rise linearly from 0; 0 for none. Google's 1,024
            kibi-images are 1/64 of its runs.
        strong: Strong augmentations, applied in turn after the weak ones; default CTAugment.
    """

    guesses: Tensor
    classes: Tensor

    def __init__(
        self,
        num_strong: int = 8,
        temperature: float = 0.5,
        alpha: float = 0.75,
        coefficient: float = 1.5,
        strong_coefficient: float = 0.5,
        rotation_coefficient: float = 0.5,
        ramp: float = 1 / 64,
        strong: list[nn.Module] | None = None,
    ) -> None:
        super().__init__(coefficient, ramp)
        if num_strong < 1:
            raise UserError(f"model.algorithm.num_strong={num_strong}: must be at least 1")
        self.temperature = checks.positive("model.algorithm.temperature", temperature, "1 for no sharpening")
        self.alpha = checks.positive("model.algorithm.alpha", alpha)
        self.strong_coefficient = checks.coefficient("model.algorithm.strong_coefficient", strong_coefficient)
        self.rotation_coefficient = checks.coefficient(
            "model.algorithm.rotation_coefficient", rotation_coefficient
        )
        self.strong = nn.ModuleList([UncutCTAugment()] if strong is None else strong)
        anchored = {f"strong_{k + 1}": ("weak", *self.strong) for k in range(num_strong)}
        self.views = {"weak": ("weak",), **anchored}
        self.labeled_view = ("weak", *self.strong)

    def extra_heads(self, num_classes: int) -> Mapping[str, int]:
        """See :meth:`Algorithm.extra_heads`."""
        return {"rotation": 4} if self.rotation_coefficient else {}

    def prepare(self, num_unlabeled: int, num_classes: int) -> None:
        """See :meth:`Algorithm.prepare`."""
        self.register_buffer("guesses", torch.full((HISTORY, num_classes), 1 / num_classes))
        self.register_buffer("classes", torch.full((num_classes,), 1 / num_classes))

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        views, index = [unlabeled.views[name] for name in self.views], unlabeled.row
        with torch.no_grad(), paused_statistics(model):
            weak = model(views[0])
        guess = weak.probabilities()
        target = sharpened(self.aligned(guess), self.temperature)
        if context.learning:
            self._remember(guess, labeled.target)

        known, *guessed = mixed_outputs(model, labeled, views, target, self.alpha)

        confidence = guess.amax(-1)
        terms = [supervised_term(*known)]
        if self.rotation_coefficient:
            with paused_statistics(model):
                images, turns = rotated(views[1])
                rotation = model(images, head="rotation")
            truth = one_hot_like(turns, rotation.probabilities())
            scale = self.rotation_coefficient
            terms.append(
                unlabeled_term(
                    "rotation", rotation, truth, CROSS_ENTROPY, index, scale=scale, head="rotation"
                )
            )
        for name, (output, mixed_target) in zip(self.views, guessed, strict=True):
            scale = self.scale(context) / len(views)
            terms.append(
                unlabeled_term(
                    f"mixed_{name}",
                    output,
                    mixed_target,
                    CROSS_ENTROPY,
                    index,
                    scale=scale,
                    confidence=confidence,
                )
            )
        if self.strong_coefficient:
            with paused_statistics(model):
                strong = model(views[1])
            scale = self.strong_coefficient * context.ramp(self.ramp)
            terms.append(
                unlabeled_term(
                    "strong",
                    strong,
                    target,
                    CROSS_ENTROPY,
                    index,
                    scale=scale,
                    confidence=confidence,
                    anchor=weak,
                )
            )
        return terms

    def aligned(self, guess: Tensor) -> Tensor:
        """Predictions (B, C), their classes as frequent as those of the labelled examples (Sec. 3.1)."""
        ratio = (1e-6 + self.classes / self.classes.sum()) / (1e-6 + self.guesses.mean(0))
        weighted = guess * ratio.to(guess.dtype)
        return weighted / weighted.sum(-1, keepdim=True)

    @torch.no_grad()
    def _remember(self, guess: Tensor, labels: Tensor) -> None:
        newest = all_processes(guess).mean(0, keepdim=True)
        self.guesses.copy_(torch.cat((self.guesses[1:], newest.to(self.guesses.dtype))))
        self.classes.lerp_(all_processes(labels).mean(0).to(self.classes.dtype), 1 - DATA_DECAY)

    def after_step(self, show: Show, context: Context) -> None:
        """See :meth:`Algorithm.after_step`."""
        update_rates(self.strong, show, context)


def rotated(images: Tensor) -> tuple[Tensor, Tensor]:
    """A quarter of the batch turned by 0, 90, 180 and 270 degrees each, and the number of turns (B,) int64.

    Raises:
        UserError: If the images (B, C, H, W) are not square.
    """
    if images.dim() != 4 or images.shape[2] != images.shape[3]:
        raise UserError(
            f"model.algorithm.rotation_coefficient: square images can be rotated, not inputs of shape "
            f"{tuple(images.shape[1:])}; set it to 0"
        )
    quarters = images.tensor_split(4)
    turns = [torch.full((len(part),), turn, device=images.device) for turn, part in enumerate(quarters)]
    return torch.cat([part.rot90(turn, (2, 3)) for turn, part in enumerate(quarters)]), torch.cat(turns)
