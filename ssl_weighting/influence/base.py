"""What an influence is: dL(V)/dλ_u of every unlabelled example of a batch, through an inverse Hessian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ssl_weighting.terms import Inputs, LinearHead, LossTerm, Objective


class Network(Protocol):
    """The classifier, as influence sees it."""

    @property
    def heads(self) -> Mapping[str, LinearHead]:
        """The linear heads by name."""
        ...

    def __call__(self, inputs: Inputs, head: str = ...) -> tuple[Inputs, Tensor, Tensor]:
        """Inputs, features (B, D) and logits (B, C)."""
        ...


class Influence(ABC):
    """An approximation of Eq. 6: −∇L(V')ᵀ H⁻¹ ∇ℓ_u for every unlabelled example u of a batch.

    H is the Hessian of the training loss on (D', U') at the present θ and Λ. ℓ_u is the example's own,
    *unmasked* loss times the term's ``scale``; it is not divided by the batch size, so an influence is |U'| times
    the derivative of L(V') in λ_u (the weighted loss is a mean over U').
    """

    @abstractmethod
    def __call__(self, network: Network, objective: Objective, validation: LossTerm) -> list[Tensor]:
        """Influences of the unlabelled examples.

        Args:
            network: The classifier at the present θ.
            objective: The training loss on (D', U'), evaluated at θ.
            validation: The supervised loss on V', evaluated at θ.

        Returns:
            For every term of ``objective`` that has an ``index``, in order, its influences, (B,), float32 or better.

        Raises:
            UserError: If the Hessian cannot be inverted; names the mend.
        """
