"""No network: the examples are features already."""

from __future__ import annotations

from torch import Tensor

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.checks import require
from ssl_weighting.errors import UserError
from ssl_weighting.protocols import Inputs


class Precomputed(Backbone):
    """Inputs that are features already, such as those of a frozen encoder: only the linear head is trained.

    Args:
        feature_dim: D, numbers an example.

    Raises:
        UserError: If there are none.
    """

    regroups = True

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        require("model.backbone.feature_dim", feature_dim, feature_dim >= 1, "must be at least 1")
        self.feature_dim = feature_dim

    def forward(self, inputs: Inputs) -> Tensor:
        """The inputs, (B, ...), as vectors (B, feature_dim).

        Raises:
            UserError: If an example has another number of them.
        """
        features: Tensor = inputs.flatten(1)
        if features.shape[1] != self.feature_dim:
            raise UserError(
                f"model.backbone.feature_dim={self.feature_dim}: the examples have {features.shape[1]} numbers each; "
                f"give {features.shape[1]}"
            )
        return features
