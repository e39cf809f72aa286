"""What a backbone is, and the classifier made of a backbone and its linear heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_weighting.errors import UserError
from ssl_weighting.protocols import Inputs, LinearHead


class Backbone(nn.Module, ABC):
    """Turns a batch of inputs into features; the linear head that follows belongs to :class:`Classifier`.

    Subclasses set ``feature_dim`` and write ``forward(inputs) -> (B, feature_dim)``.

    Attributes:
        feature_dim: D.
        frozen: Whether nothing of it is trained: features are computed once, and only the head learns.
        last_block: Regular expression that the names of the last block's parameters match, for influences of
            that scope.
        regroups: Whether a batch may be run in parts and in another order, because nothing couples its examples
            and that saves work. Influences that look into layers switch it off for a while.
        lockstep: Whether a batch must be run in one part, whatever is in it, because processes wait for each other
            within each pass (FSDP).
    """

    feature_dim: int
    frozen: bool = False
    last_block: str = ""
    regroups: bool = False
    lockstep: bool = False

    @abstractmethod
    def forward(self, inputs: Inputs) -> Tensor:
        """Features (B, feature_dim) of a batch."""

    def initialise_head(self, weight: Tensor) -> None:
        """Draw the initial weight (R, D) of a head. Glorot normal, as in Google's code, unless overridden."""
        nn.init.xavier_normal_(weight)

    def join(self, batches: Sequence[Inputs]) -> Inputs:
        """Several batches as one."""
        return pytree.tree_map(lambda *parts: torch.cat(parts), *batches)

    def perturbation_like(self, inputs: Inputs) -> Tensor:
        """Normal noise, (B, ...), in the space in which which :meth:`perturb` moves the inputs."""
        if not isinstance(inputs, Tensor):
            raise UserError(
                f"model.backbone={type(self).__name__}: does not say how to perturb such inputs; choose another method"
            )
        return torch.randn_like(inputs)

    def perturb(self, inputs: Inputs, by: Tensor) -> Inputs:
        """The inputs plus a perturbation of the shape that :meth:`perturbation_like` gives."""
        return inputs + by


class SymmetricBinaryHead(nn.Module):
    """Two classes from one logit: (f, −f) with f = w·x + b (Appendix E).

    Two free logits have a direction along which the loss is flat, which spoils the inverse Hessian.
    p(class 0) = sigmoid(2f); a damping δ of the two-logit head equals 2δ here, which the solvers account for
    through ``basis``.
    """

    basis: Tensor

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, feature_dim))
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("basis", torch.tensor([[1.0], [-1.0]]), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, 2) of features (B, D)."""
        f = nn.functional.linear(features, self.weight, self.bias)
        return torch.cat((f, -f), -1)


class Head(nn.Linear):
    """An ordinary linear head: one logit a class."""

    basis: Tensor | None = None


class Output(NamedTuple):
    """What the classifier made of one batch.

    Attributes:
        inputs: What it was given.
        features: (B, D).
        logits: (B, C).
        further: Logits of further heads by name, (B, classes of that head) each.
    """

    inputs: Inputs
    features: Tensor
    logits: Tensor
    further: Mapping[str, Tensor] = {}

    def probabilities(self) -> Tensor:
        """softmax(logits), (B, C), float32 or better, detached."""
        logits = self.logits.detach()
        return (logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits).softmax(-1)

    def of(self, head: str) -> Output:
        """The same with the logits of a further head, one of those that were asked for."""
        return Output(self.inputs, self.features, self.further[head])


class Classifier(nn.Module):
    """A backbone and its linear heads.

    Args:
        backbone: Makes the features.
        num_classes: C.
        symmetric_binary_head: With two classes, use :class:`SymmetricBinaryHead`.
        extra_heads: Further heads by name, with their number of classes (ReMixMatch's rotation head).
        targets_apart: Run batches that only make targets in a pass of their own, whatever the backbone; see
            :meth:`joint`.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        symmetric_binary_head: bool = True,
        extra_heads: Mapping[str, int] | None = None,
        targets_apart: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.targets_apart = backbone, targets_apart
        binary = symmetric_binary_head and num_classes == 2
        heads: dict[str, Head | SymmetricBinaryHead] = {
            "classifier": SymmetricBinaryHead(backbone.feature_dim)
            if binary
            else Head(backbone.feature_dim, num_classes)
        }
        for name, classes in (extra_heads or {}).items():
            heads[name] = Head(backbone.feature_dim, classes)
        for head in heads.values():
            backbone.initialise_head(head.weight)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleDict(heads)

    def forward(self, inputs: Inputs, head: str = "classifier", further: Collection[str] = ()) -> Output:
        """Features and logits of a batch, and the logits of ``further`` heads."""
        features = self.backbone(inputs)
        others = {name: self.heads[name](features) for name in further}
        return Output(inputs, features, self.heads[head](features), others)

    def head(self, name: str) -> LinearHead:
        """A linear head by name."""
        return cast(LinearHead, self.heads[name])

    def joint(
        self, *inputs: Inputs, constant: Collection[int] = (), further: Collection[str] = ()
    ) -> list[Output]:
        """Several batches in one forward pass, so that they share batch statistics; an Output each.

        Args:
            inputs: The batches.
            constant: Positions of those that only make targets. Where nothing couples examples, or with
                ``targets_apart``, they run apart and without a graph, which saves their backward pass.
            further: Names of heads that read the same features, for :meth:`Output.of`.
        """
        if constant and (self.backbone.regroups or self.targets_apart) and torch.is_grad_enabled():
            moving = [i for i in range(len(inputs)) if i not in constant]
            # First: autocast keeps low-precision weights, and those made without a graph would be met again.
            outputs = dict(
                zip(moving, self.joint(*(inputs[i] for i in moving), further=further), strict=True)
            )
            with torch.no_grad():
                apart = self.joint(*(inputs[i] for i in constant), further=further)
            outputs |= dict(zip(constant, apart, strict=True))
            return [outputs[i] for i in range(len(inputs))]
        sizes = [len(pytree.tree_leaves(batch)[0]) for batch in inputs]
        together = self(self.backbone.join(inputs), further=further)
        others = {name: logits.split(sizes) for name, logits in together.further.items()}
        pieces = zip(inputs, together.features.split(sizes), together.logits.split(sizes), strict=True)
        return [
            Output(*piece, {name: parts[i] for name, parts in others.items()})
            for i, piece in enumerate(pieces)
        ]

    def perturbation_like(self, inputs: Inputs) -> Tensor:
        """See :meth:`Backbone.perturbation_like`."""
        return self.backbone.perturbation_like(inputs)

    def perturb(self, inputs: Inputs, by: Tensor) -> Inputs:
        """See :meth:`Backbone.moved`."""
        return self.backbone.perturb(inputs, by)
