"""What an influence is: dL(V)/dλ_u of every unlabelled example of a batch, through an inverse Hessian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ssl_weighting.protocols import Network
from ssl_weighting.terms import LossTerm, Objective


@dataclass(frozen=True)
class ThetaStep:
    """One step of SGD on θ, as :class:`TruncatedUnroll` needs it to walk the step backwards.

        ĝ = gradient_scale · ∇L(θ) + weight_decay · θ,   b' = momentum · b + ĝ,
        θ' = θ − lr · b'   or, with nesterov,   θ' = θ − lr · (ĝ + momentum · b').

    The step is linear in the momentum buffer, whose value is therefore not needed.

    Attributes:
        parameters: θ *before* the step: every name of ``network.named_parameters()`` to a detached clone.
        objective: L(D', U', θ, Λ) of the step. Of its terms only what is fixed is looked at (inputs, targets,
            masks, distances, heads, scales), so features and logits may be detached; λ is that of the step.
        lr: α.
        momentum: μ.
        weight_decay: One number, or one for each parameter by name (a name that is absent has 0).
        nesterov: Whether the step looks ahead.
        gradient_scale: The factor by which gradient clipping shortened ∇L; taken as a constant.
    """

    parameters: Mapping[str, Tensor]
    objective: Objective
    lr: float
    momentum: float = 0.0
    weight_decay: float | Mapping[str, float] = 0.0
    nesterov: bool = False
    gradient_scale: float = 1.0


class Influence(ABC):
    """An approximation of Eq. 6: −∇L(V')ᵀ H⁻¹ ∇ℓ_u for every unlabelled example u of a batch.

    H is the Hessian of the training loss on (D', U') at the present θ and Λ. ℓ_u is the example's own,
    *unmasked* loss times the term's ``scale``; it is not divided by the batch size, so an influence is |U'|
    times the derivative of L(V') in λ_u (the weighted loss is a mean over U').

    Attributes:
        records_steps: How many of the latest θ steps this influence wants to see through :meth:`record_step`;
            0, as for all but the truncated unroll, spares the loop from keeping them.
        reads_parameters: Whether it needs θ itself; not if features and logits are all that it looks at.
        needs_held_out: Whether it judges examples that train as if they did not; not if it leaves each out, or only
            compares others to them.
    """

    records_steps: int = 0
    reads_parameters: bool = True
    needs_held_out: bool = True

    @abstractmethod
    def __call__(self, network: Network, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """Influences of the unlabelled examples.

        Args:
            network: The classifier at the present θ.
            objective: The training loss on (D', U'), evaluated at θ.
            validation: The supervised loss on V', evaluated at θ.

        Returns:
            For every term of ``objective`` that has a ``row``, in order, its influences, (B,), float32 or
            better.

        Raises:
            UnsolvedError: If the Hessian cannot be inverted; says what to do.
            UserError: If it cannot take the network, whatever the numbers are.
        """

    def state(self) -> Any:
        """What a resumed run needs of this influence: tensors, numbers, strings, lists and dictionaries of them."""
        return None

    def restore(self, state: Any) -> None:  # noqa: B027  (most solvers remember nothing)
        """Take up what :meth:`state` gave."""

    def record_step(self, step: ThetaStep) -> None:  # noqa: B027  (most solvers need no history)
        """See the θ step that was just made. Called after every one if ``records_steps`` > 0."""
