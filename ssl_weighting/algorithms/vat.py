"""Virtual adversarial training (Miyato et al. 2018) with entropy minimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_weighting import checks
from ssl_weighting.algorithms.base import (
    Context,
    Labeled,
    RampedAlgorithm,
    Unlabeled,
    paused_statistics,
    supervised_term,
    unlabeled_term,
)
from ssl_weighting.errors import UserError
from ssl_weighting.protocols import Forward, Model
from ssl_weighting.terms import ENTROPY, KL_DIVERGENCE, LossTerm


class VAT(RampedAlgorithm):
    """An example is compared to itself, moved a little in the direction that changes the prediction most.

    With p(x) = p(y | x), the losses of an unlabelled example are (Miyato et al. 2018)

        w(t) · KL( p(u) ‖ p(u + r) )          r = ε g / ‖g‖
                                              g = ∇_r KL( p(u) ‖ p(u + r) )  at r = ξ d,  d random, ‖d‖ = 1
        w_H · H( p(u) )

    Entropy's gradient flows through p(u), the divergence's only through p(u + r). Batch norm's running
    statistics follow the labelled batch alone.

    Args:
        epsilon: ε, length of the perturbation, in the network's input units (6, for pixels in [−1, 1]); of texts
            the embeddings are moved, those of all words together by ε.
        xi: ξ, length of the step at which g is taken. Google's is 1e-6, less than float32 resolves: at 1e-6
            the direction found has a cosine of about 0.4 with the one of float64, at 1e-2 above 0.99.
        iterations: Power iterations for d.
        coefficient: w after its ramp.
        ramp: Share of training over which w rises linearly from 0; 0 for none.
        entropy_coefficient: w_H; 0 for VAT alone. Not ramped.
    """

    def __init__(
        self,
        epsilon: float = 6.0,
        xi: float = 1e-2,
        iterations: int = 1,
        coefficient: float = 0.3,
        ramp: float = 0.4,
        entropy_coefficient: float = 0.06,
    ) -> None:
        super().__init__(coefficient, ramp)
        self.epsilon = checks.positive("model.algorithm.epsilon", epsilon)
        self.xi = checks.positive("model.algorithm.xi", xi)
        if iterations < 1:
            raise UserError(f"model.algorithm.iterations={iterations}: must be at least 1")
        self.iterations = iterations
        self.entropy_coefficient = checks.coefficient(
            "model.algorithm.entropy_coefficient", entropy_coefficient
        )
        self.views = {"weak": ("weak",)}

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known = model(labeled.inputs)
        with paused_statistics(model):
            plain = model(unlabeled.views["weak"])
            perturbed = model(model.perturb(plain.inputs, self.perturbation(model, plain)))
        target = plain.probabilities()
        scale, row = self.scale(context), unlabeled.row
        terms = [
            supervised_term(known, labeled.target),
            unlabeled_term("adversarial", perturbed, target, KL_DIVERGENCE, row, scale=scale, anchor=plain),
        ]
        if self.entropy_coefficient:
            terms.append(
                unlabeled_term("entropy", plain, target, ENTROPY, row, scale=self.entropy_coefficient)
            )
        return terms

    def perturbation(self, model: Model, plain: Forward) -> Tensor:
        """The perturbation r of every example, by a finite difference in full precision.

        Args:
            model: The classifier; neither its gradients nor its running statistics change.
            plain: What it made of the examples as they are.

        Returns:
            In the shape of what is perturbed (pixels, embeddings), each example's of length ε.

        Raises:
            UserError: If the network does not say what that is.
        """
        inputs = plain.inputs
        direction = _unit(model.perturbation_like(inputs))
        device = direction.device.type
        rounded = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False), torch.enable_grad():
            if rounded:  # bfloat16 logits differ from float32 ones by more than the step changes them
                with torch.no_grad():
                    plain = model(inputs)
            target = plain.probabilities()
            for _ in range(self.iterations):
                step = (self.xi * direction).requires_grad_()
                divergence = KL_DIVERGENCE.value(model(model.perturb(inputs, step)).logits, target).sum()
                direction = _unit(torch.autograd.grad(divergence, step)[0])
        return self.epsilon * direction


def _unit(vectors: Tensor) -> Tensor:
    """Vectors (B, ...) at length 1. Their largest entries come to 1 first, lest the squares underflow."""
    flat = vectors.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    unit: Tensor = flat / length.clamp(min=torch.finfo(flat.dtype).tiny)
    return unit.view_as(vectors)
