"""Any network with a linear head, by the name of that head."""

from __future__ import annotations

from torch import Tensor, nn

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.errors import UserError
from ssl_weighting.protocols import Inputs


class _Tap(nn.Module):
    """Stands where the head was: keeps what the head would be given, and answers with zeros of its shape."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features
        self._given: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        self._given = features
        return features.new_zeros(*features.shape[:-1], self.out_features)

    def take(self) -> Tensor | None:
        """What came last, once: a kept tensor would stop the network from being copied."""
        given, self._given = self._given, None
        return given


class ModuleBackbone(Backbone):
    """Any ``nn.Module`` that ends in a linear head: the features are what that head is given.

    The head itself is dropped; the classifier puts its own there. What the module does after it is ignored.

    Args:
        module: The network, of images (B, C, H, W) or whatever the data set gives. In a recipe: ``class_path`` and
            ``init_args`` of a class that Python can import.
        head: Name of its linear head, as in ``module.named_modules()``: ``fc``, ``classifier.1``.
        last_block: See :class:`~ssl_weighting.backbones.base.Backbone`; default: found by itself.
        frozen: Nothing of it is trained: see :class:`~ssl_weighting.backbones.base.Backbone`.

    Raises:
        UserError: If there is no linear layer of that name.
    """

    def __init__(self, module: nn.Module, head: str, last_block: str = "", frozen: bool = False) -> None:
        super().__init__()
        self.frozen = frozen
        linear = dict(module.named_modules()).get(head)
        if not head or not isinstance(linear, nn.Linear):
            names = linear_names(module)
            kind = "no such module" if linear is None else f"a {type(linear).__name__}, not a linear layer"
            raise UserError(
                f"model.backbone.head={head}: {kind}; {type(module).__name__} has the linear layers "
                f"{', '.join(names[-5:]) or 'none'}"
            )
        self.module, self.head_name = module, head
        self.feature_dim = linear.in_features
        module.set_submodule(head, _Tap(linear.out_features))
        if last_block:
            self.last_block = rf"module\.(?:{last_block})"

    def forward(self, inputs: Inputs) -> Tensor:
        """Features (B, feature_dim) of a batch.

        Raises:
            UserError: If the head gets no matrix, such as one row a token.
        """
        self.module(inputs)
        tap = self.module.get_submodule(self.head_name)
        assert isinstance(tap, _Tap)
        features = tap.take()
        if features is None or features.dim() != 2:
            what = "nothing" if features is None else f"a tensor of shape {tuple(features.shape)}"
            raise UserError(
                f"model.backbone.head={self.head_name}: is given {what} instead of one row of features an example; "
                "name the layer that makes the logits"
            )
        return features


def linear_names(module: nn.Module) -> list[str]:
    """Names of all linear layers, in the module's order."""
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
