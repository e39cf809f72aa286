"""Small networks in float64, their loss terms, and dense linear algebra to compare with."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssl_weighting.backbones.base import Backbone, Classifier
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.backbones.mlp import MLP
from ssl_weighting.protocols import Inputs
from ssl_weighting.terms import CROSS_ENTROPY, SQUARED_ERROR, LossTerm, Objective


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return one_thread


class TinyTransformer(Backbone):
    """Embeddings, one layer of attention by hand (fused kernel), layer norms and GELU."""

    last_block = r"feedforward|norm2"

    def __init__(self) -> None:
        super().__init__()
        d = self.feature_dim = 4
        self.tokens, self.positions = nn.Embedding(7, d), nn.Embedding(5, d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.feedforward = nn.Sequential(nn.Linear(d, 6), nn.GELU(), nn.Linear(6, d))
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs: Inputs) -> Tensor:
        ids = inputs["ids"]
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1])[None])
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mask = inputs["mask"][:, None, None, :]
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm1(x + self.dropout(self.out(attended.transpose(1, 2).flatten(2))))
        return self.norm2(x + self.feedforward(x)).mean(1)


@dataclass
class Case:
    """A network with D', U' and V'."""

    network: Classifier
    objective: Objective
    validation: LossTerm

    def flat(self, names: list[str] | None = None) -> tuple[list[str], Tensor]:
        named = {n: p.detach() for n, p in self.network.named_parameters() if names is None or n in names}
        return list(named), torch.cat([p.reshape(-1) for p in named.values()])

    def logits(self, names: list[str], theta: Tensor, term: LossTerm) -> Tensor:
        parameters, start = {}, 0
        for name in names:
            p = self.network.get_parameter(name)
            parameters[name] = theta[start : start + p.numel()].view_as(p)
            start += p.numel()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(SDPBackend.MATH):
            constants = {n: p.detach() for n, p in self.network.named_parameters() if n not in parameters}
            return functional_call(self.network, {**constants, **parameters}, (term.inputs, term.head))[2]

    def loss(self, names: list[str], theta: Tensor, objective: Objective) -> Tensor:
        total = theta.new_zeros(())
        for term, weights in zip(objective.terms, objective.weights, strict=True):
            values = term.distance.value(self.logits(names, theta, term), term.target)
            weights = 1.0 if weights is None else weights
            total = total + term.scale * (weights * term.mask * values).mean()
        return total

    def gradients(self, names: list[str], term: LossTerm) -> Tensor:
        """Scaled, unmasked per-example gradients (B, P)."""
        _, theta = self.flat(names)
        return torch.func.jacrev(
            lambda t: term.scale * term.distance.value(self.logits(names, t, term), term.target)
        )(theta)

    def validation_gradient(self, names: list[str]) -> Tensor:
        only = Objective([self.validation], [None])
        return torch.func.grad(lambda t: self.loss(names, t, only))(self.flat(names)[1])

    def hessian(self, names: list[str]) -> Tensor:
        # Not by torch.func: vmap's rule for layer norm's second derivative is wrong in torch 2.15, as finite
        # differences show.
        return torch.autograd.functional.hessian(
            lambda t: self.loss(names, t, self.objective), self.flat(names)[1], vectorize=False
        )

    def gauss_newton(self, names: list[str]) -> Tensor:
        _, theta = self.flat(names)
        total = theta.new_zeros(len(theta), len(theta))
        for term, weights in zip(self.objective.terms, self.objective.weights, strict=True):
            jacobian = torch.func.jacrev(lambda t, term=term: self.logits(names, t, term))(theta)
            inner = term.distance.hessian(self.logits(names, theta, term), term.target)
            w = term.scale * term.mask * (1.0 if weights is None else weights) / len(term.mask)
            total += torch.einsum("b,bcp,bcd,bdq->pq", w, jacobian, inner, jacobian)
        return total

    def influences(self, names: list[str], matrix: Tensor) -> Tensor:
        """−∇ℓ_uᵀ matrix⁻¹ g."""
        v = torch.linalg.solve(matrix, self.validation_gradient(names))
        return -torch.cat([self.gradients(names, t) @ v for t in self.objective.terms if t.row is not None])


def make_case(kind: str, classes: int = 3, seed: int = 0, binary: bool = False) -> Case:
    torch.manual_seed(seed)
    backbone = {
        "mlp": lambda: MLP(3, (4, 5)),
        "conv": lambda: SmallConvNet(2, (3, 4)),
        "transformer": TinyTransformer,
    }[kind]()
    classes = 2 if binary else classes
    network = Classifier(backbone, classes, extra_heads={"rotation": 4}).double().eval()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)

    def inputs(n: int) -> Inputs:
        if kind == "mlp":
            return torch.randn(n, 3, dtype=torch.float64)
        if kind == "conv":
            return torch.randn(n, 2, 6, 6, dtype=torch.float64)
        mask = torch.ones(n, 5, dtype=torch.bool)
        mask[: n // 2, 4:] = False
        return {"ids": torch.randint(7, (n, 5)), "mask": mask}

    def term(name: str, batch: Inputs, **changes) -> LossTerm:
        head = changes.get("head", "classifier")
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            out = network(batch, head)
        n = len(out.logits)
        target = changes.pop("target", torch.randn(out.logits.shape, dtype=torch.float64).softmax(-1))
        mask = changes.pop("mask", torch.ones(n, dtype=torch.float64))
        distance = changes.pop("distance", CROSS_ENTROPY)
        if "row" in changes and head == "classifier":
            changes["anchor"] = out.features
        return LossTerm(name, batch, out.features, out.logits, target, distance, mask, **changes)

    strong = inputs(7)
    terms = [
        term("supervised", inputs(5)),
        term(
            "unlabelled",
            strong,
            row=torch.arange(7),
            mask=(torch.arange(7) % 3 > 0).double(),
            scale=1.5,
        ),
        term("consistency", strong, row=torch.arange(7), distance=SQUARED_ERROR, scale=0.5),
        term("rotation", inputs(4), head="rotation", row=torch.arange(4), scale=0.7),
    ]
    weights = [None, torch.rand(7, dtype=torch.float64) + 0.5, None, torch.rand(4, dtype=torch.float64)]
    return Case(network, Objective(terms, weights), term("validation", inputs(6)))


@pytest.fixture
def case() -> Callable[..., Case]:
    return make_case
