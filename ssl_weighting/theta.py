"""θ: its options, its optimiser, and one step of it (Alg. 1, lines 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ssl_weighting.checks import require
from ssl_weighting.distributed import averaged, process_count
from ssl_weighting.ema import MovingAverage
from ssl_weighting.errors import UserError
from ssl_weighting.guards import FiniteGuard
from ssl_weighting.influence.base import Influence, ThetaStep
from ssl_weighting.influence.scope import check_scope, scope_parameters
from ssl_weighting.schedules import Schedule, make_schedule
from ssl_weighting.snapshot import Snapshot
from ssl_weighting.terms import Objective
from ssl_weighting.weighting.stats import Predictions, predictions_of

OptimizerCallable = Callable[[Iterable], Optimizer]


def default_optimizer(parameters: Iterable) -> Optimizer:
    """SGD with Nesterov momentum 0.9, step 0.03 and weight decay 5e-4: FixMatch's and UDA's for images."""
    return torch.optim.SGD(parameters, lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4)


@dataclass(frozen=True)
class ThetaOptions:
    """How θ is trained.

    Args:
        optimizer: Makes θ's optimiser from its parameter groups.
        decay_all: Decay all parameters (UDA) and not only kernels, those of two or more dimensions (FixMatch).
        schedule: Learning rate of θ over the run.
        lr_warmup_steps: θ steps over which the rate rises from 0.
        clip_norm: Largest norm of θ's gradient; ``null`` for no clipping. (IMDB: 1.)
        accumulate: Batches whose gradients are averaged into one θ step.
        ema_decay: Decay of the moving average of θ that is evaluated; 0 evaluates θ itself.
        scope: What of the network is trained, besides its heads: ``all``, ``last_block`` (its last block and what follows
            it), ``last_layer`` (nothing), or a regular expression, searched for in the parameters' names. The rest
            keeps its pretrained weights; its batch statistics go on. Where nothing is trained, ``frozen: true`` of the
            backbone is faster by far.

    Raises:
        UserError: On an argument out of range, naming it.
    """

    optimizer: OptimizerCallable = default_optimizer
    decay_all: bool = False
    schedule: Schedule = "cosine_7_16"
    lr_warmup_steps: int = 0
    clip_norm: float | None = None
    accumulate: int = 1
    ema_decay: float = 0.999
    scope: str = "all"

    def __post_init__(self) -> None:
        key = "model.theta"
        check_scope(self.scope, f"{key}.scope")
        require(f"{key}.accumulate", self.accumulate, self.accumulate >= 1, "must be at least 1")
        require(
            f"{key}.lr_warmup_steps", self.lr_warmup_steps, self.lr_warmup_steps >= 0, "must be at least 0"
        )
        require(f"{key}.ema_decay", self.ema_decay, 0 <= self.ema_decay < 1, "must be at least 0 and below 1")
        if self.clip_norm is not None:
            require(
                f"{key}.clip_norm",
                self.clip_norm,
                self.clip_norm > 0,
                "must be above 0; null for no clipping",
            )


def keep_to_scope(network: nn.Module, scope: str) -> None:
    """Freeze what is not trained.

    Args:
        network: A classifier.
        scope: See :class:`ThetaOptions`.

    Raises:
        UserError: If nothing of the network matches.
    """
    if scope == "all":
        return
    trained = scope_parameters(network, scope, key="model.theta.scope")
    for name, parameter in network.named_parameters():
        if name not in trained and not name.startswith("heads."):
            parameter.requires_grad_(False)


@dataclass(frozen=True)
class Step:
    """A θ step that came to its end.

    Attributes:
        made: Whether θ moved; not where a gradient was not finite and such steps are skipped.
        losses: Loss of every term of the last batch, weighted, scalars.
        loss: Their sum.
        predictions: What unlabelled examples were compared to.
    """

    made: bool
    losses: list[Tensor]
    loss: Tensor
    predictions: list[Predictions]

    def numbers(self, objective: Objective) -> dict[str, Tensor]:
        """What is logged of it: the loss, each term's share, and how much of a term on the pool counted."""
        values = {"train/loss": self.loss}
        for term, value in zip(objective.terms, self.losses, strict=True):
            values[f"train/{term.name}"] = value
            if term.row is not None:
                values[f"train/{term.name}_mask"] = term.mask.mean()
        return values


class Theta:
    """The steps of θ: accumulation, clipping, the optimiser's step, the rate and the moving average.

    Args:
        options: How θ is trained.
        network: Whose parameters θ are.
        average: Their moving average.
        stateful: Further modules that a batch changes: restored where a step is skipped.
        skips: Skip a step whose loss or gradient is not finite, and go on. Else it is an error.
    """

    def __init__(
        self,
        options: ThetaOptions,
        network: nn.Module,
        average: MovingAverage,
        stateful: Iterable[nn.Module],
        skips: bool,
    ) -> None:
        self.options, self.network, self.average = options, network, average
        self.stateful, self.skips = (network, *stateful), skips
        self.finite = FiniteGuard()
        self._predictions: list[Predictions] = []

    # ---- its optimiser -------------------------------------------------------------------------------------

    def new_optimizer(self, recorder: Influence | None = None) -> Optimizer:
        """θ's optimiser as the options ask for it, without state.

        Args:
            recorder: An influence that walks back through θ's steps, if there is one.

        Raises:
            UserError: If it cannot be made, or its steps cannot be walked back through.
        """
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        decay_all = self.options.decay_all
        kernels = [p for p in parameters if p.dim() > 1 or decay_all]
        others = [p for p in parameters if not (p.dim() > 1 or decay_all)]
        groups: list[dict[str, Any]] = [{"params": kernels}]
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
        try:
            made = self.options.optimizer(groups)
        except (ValueError, TypeError) as error:
            raise UserError(f"model.theta.optimizer: {error}") from error
        if recorder is not None and not (isinstance(made, torch.optim.SGD) and self.options.accumulate == 1):
            raise UserError(
                f"model.influence={type(recorder).__name__}: walks back through steps of torch.optim.SGD with "
                "model.theta.accumulate=1; use them, or another influence"
            )
        return made

    def new_schedule(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """The learning rate over a run of so many θ steps."""
        return make_schedule(optimizer, self.options.schedule, total_steps, self.options.lr_warmup_steps)

    # ---- a step --------------------------------------------------------------------------------------------

    def begin(self, batch_idx: int) -> None:
        """Before a batch goes through the network."""
        if batch_idx % self.options.accumulate == 0:
            self._predictions = []
            if self.skips:
                self._before = Snapshot(*self.stateful)

    def step(
        self,
        objective: Objective,
        batch_idx: int,
        step: int,
        module: LightningModule,
        influence: Influence | None = None,
    ) -> Step | None:
        """θ ← θ − α ∇_θ L(D', U', θ, Λ), line 5 (Eq. 3).

        Args:
            objective: L(D', U', θ, Λ) of a batch.
            batch_idx: Number of the batch.
            step: Number of the θ step.
            module: Does what Lightning does: backward pass, clipping, optimiser, schedule.
            influence: One that wants to see the step, if there is one.

        Returns:
            ``None`` while gradients still accumulate.
        """
        losses = [
            term.loss(weights) for term, weights in zip(objective.terms, objective.weights, strict=True)
        ]
        loss = torch.stack(losses).sum()
        self._predictions += predictions_of(objective)
        self._watch(objective, losses, loss, step)
        module.manual_backward(loss / self.options.accumulate)
        if (batch_idx + 1) % self.options.accumulate:
            return None
        optimizer = cast(LightningOptimizer, module.optimizers())
        schedule = cast(LRScheduler, module.lr_schedulers())
        made = not self.skips or self._before.stays_finite(self._gradients())
        if made:
            if influence is not None:
                influence.record_step(self._about_to_be_made(optimizer.optimizer, objective))
            if self.options.clip_norm is not None:
                module.clip_gradients(optimizer.optimizer, self.options.clip_norm, "norm")
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            self._share_running_statistics()
            self.average.update(self.network)
        else:
            self._before.restore()
            optimizer.zero_grad()  # a parameter without a gradient does not move
            optimizer.step()
            schedule.step()
        return Step(made, losses, loss, self._predictions)

    def _watch(self, objective: Objective, losses: list[Tensor], loss: Tensor, step: int) -> None:
        """Look whether the losses are finite; on an accelerator that is asked for later."""
        if self.skips:
            self._before.see(loss)
            return
        seen = {f"the loss term {t.name!r}": v for t, v in zip(objective.terms, losses, strict=True)}
        self.finite.see(step, seen)
        if loss.device.type == "cpu":
            self.finite.check()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.network.parameters() if p.grad is not None]

    @torch.no_grad()
    def _share_running_statistics(self) -> None:
        """Batch norm's running statistics averaged over the processes, so that all hold the same network."""
        if process_count() == 1:
            return
        norms = [m for m in self.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        running = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
        if running:
            means = torch.split(averaged(torch.cat(running)), [len(b) for b in running])
            torch._foreach_copy_(running, list(means))

    def _about_to_be_made(self, optimizer: Optimizer, objective: Objective) -> ThetaStep:
        """The θ step whose gradient stands ready, for influences that walk it backwards."""
        parameters = dict(self.network.named_parameters())
        group = optimizer.param_groups[0]
        decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        scale = 1.0
        if self.options.clip_norm is not None:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self._gradients())))
            scale = min(1.0, self.options.clip_norm / (float(norm) + 1e-6))  # as torch clips
        fixed = [replace(t, features=t.features.detach(), logits=t.logits.detach()) for t in objective.terms]
        return ThetaStep(
            {name: p.detach().clone() for name, p in parameters.items()},
            Objective(fixed, [w if w is None else w.clone() for w in objective.weights]),
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay={name: decay.get(id(p), 0.0) for name, p in parameters.items()},
            nesterov=group["nesterov"],
            gradient_scale=scale,
        )
