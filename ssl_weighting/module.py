"""The loop: Algorithm 1 of the paper, N steps on θ and one on Λ, as a LightningModule with manual optimisation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils import _pytree as pytree

from ssl_weighting.algorithms.base import Algorithm, Context, Labeled, Model, Unlabeled, View, supervised_term
from ssl_weighting.backbones.base import Backbone, Classifier
from ssl_weighting.data.base import NO_TRAINER_PREDICT, Examples, SSLData
from ssl_weighting.data.split import Split
from ssl_weighting.distributed import all_objects, all_processes, averaged, process_count
from ssl_weighting.ema import MovingAverage
from ssl_weighting.errors import NonFiniteError, UserError
from ssl_weighting.fsdp import FullySharded, shard
from ssl_weighting.guards import (
    FEW,
    FiniteGuard,
    check_classes,
    check_vocabulary,
    fits,
    require,
    require_compiler,
    shapes,
    try_influence,
    unchanged_buffers,
)
from ssl_weighting.influence import ExactLastLayer, Influence
from ssl_weighting.influence.base import ThetaStep
from ssl_weighting.precision import check_precision
from ssl_weighting.resumption import (
    BEGUN,
    check_begun,
    check_optimizer,
    fitted_moments,
    group_sizes,
    misfit,
    options_of,
    take_options,
)
from ssl_weighting.row_file import RowFile
from ssl_weighting.rules import BiasCorrection, WeightOptimizer, make_rule
from ssl_weighting.schedules import Schedule, make_schedule
from ssl_weighting.snapshot import Snapshot
from ssl_weighting.terms import LossTerm, Objective
from ssl_weighting.weights import ExampleRecord, ExampleWeights, Happened, row_defaults

OptimizerCallable = Callable[[Iterable], Optimizer]
Weighting = Literal["per_example", "single", "fixed"]
Storage = Literal["memory", "sharded", "disk"]
Guess = tuple[Tensor, Tensor, Tensor | None]
"""What unlabelled examples are compared to: rows of Λ (B,), target (B, C) and confidence (B,)."""

SAMPLE = 2**20
"""Most unlabelled examples that statistics look at: of more, an even sample is taken."""


def default_optimizer(parameters: Iterable) -> Optimizer:
    """SGD with Nesterov momentum 0.9, step 0.03 and weight decay 5e-4: FixMatch's and UDA's for images."""
    return torch.optim.SGD(parameters, lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4)


class SSLModule(LightningModule):
    """Semi-supervised training with a learned weight for every unlabelled example (Algorithm 1).

    Args:
        num_classes: C; taken from the data.
        backbone: The network that makes the features; a linear head is added.
        algorithm: The SSL method.
        influence: How dL(V')/dλ_u is approximated (Eq. 6): inverse Hessian and scope. Default: the exact last layer,
            the paper's choice (Sec. 3.1).
        weighting: ``per_example``: one learned λ for every unlabelled example. ``single``: one learned λ for all
            (Fig. 4, left). ``fixed``: λ stays at ``weight_init``: the plain SSL method, control of every comparison.
        inner_steps: N, θ steps between two Λ steps (Alg. 1, line 3; App. E: 100 for UDA, 512 for FixMatch, 5 for
            IMDB).
        warmup_steps: θ steps before the first N (App. E: 20,000 of 400,000 for UDA, 1,000 of 10,000 for IMDB).
        weight_lr: η, step size of Λ (Alg. 1, line 12; App. E: 0.01).
        weight_optimizer: ``masked_adam``: M-Adam (Alg. 2). ``sgd`` and ``adam`` (dense, every row moves) are its
            rivals in the ablation (Sec. 4.3); the synthetic sets use ``sgd`` (Sec. 4.1).
        bias_correction: M-Adam's: ``global`` as Alg. 2 is printed, ``per_example`` as in the authors' code.
        weight_init: Initial λ (App. E: 1; 5 for UDA with 250 labels). From 0, an example has to earn its weight before
            it is learned from.
        weight_bounds: Smallest and largest λ. The paper: above 0; the authors' code: 0 to 2.
        update_masked: Also move examples whose loss is masked out in the batch, by the influence that they would
            have unmasked. The paper's Alg. 2 leaves them, the authors' code moves them.
        weight_storage: Where Λ, M-Adam's moments and the record of each example are kept. ``memory``: whole, with every
            process. ``sharded``: divided among the processes. ``disk``: in a file ``weights.rows`` in the run's
            folder, of which only the rows of a batch are read. The numbers are the same.
        nonfinite: ``stop`` with an error at a loss or influence that is NaN or infinite, or ``skip`` that θ or Λ
            step and go on; skipped steps are counted in ``train/skipped``. Skipping waits for the device every step.
        influence_batchnorm: Batch norm's statistics inside a Λ step: ``eval``, the running ones, or ``train``, the
            batch's, as in the authors' code: examples then depend on each other. Running statistics never change
            in a Λ step.
        optimizer: Makes θ's optimiser from its parameter groups.
        decay_all: Decay all parameters (UDA) and not only kernels, those of two or more dimensions (FixMatch).
        schedule: Learning rate of θ over the run.
        lr_warmup_steps: θ steps over which the rate rises from 0.
        clip_norm: Largest norm of θ's gradient; ``null`` for no clipping. (IMDB: 1.)
        accumulate: Batches whose gradients are averaged into one θ step.
        ema_decay: Decay of the moving average of θ that is evaluated; 0 evaluates θ itself.
        symmetric_binary_head: With two classes, logits (f, −f) from one output (App. E).
        labeled_augmentation: Augmentations of labelled examples on top of the method's own, for very few of them: a
            network trained from scratch learns a hundred pictures by their colours. ``null`` for none.
        channels_last: Keep images in channels-last memory order, which convolutions prefer.
        compile: Compile the backbone with ``torch.compile`` for the θ steps; checkpoints are the same with and
            without. Evaluations and Λ steps, which need derivatives that compiled code has not, run as ever.
        target_pass: ``joint``: views that only make targets go through the network with those that are learned from,
            and share batch norm's statistics, as in Google's codes. ``apart``: in a pass of their own without
            gradient, which saves their backward pass: about a third of a θ step of UDA or FixMatch.

    Raises:
        UserError: On an argument out of range, naming it.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        algorithm: Algorithm,
        influence: Influence | None = None,
        weighting: Weighting = "per_example",
        inner_steps: int = 100,
        warmup_steps: int = 0,
        weight_lr: float = 0.01,
        weight_optimizer: WeightOptimizer = "masked_adam",
        bias_correction: BiasCorrection = "global",
        weight_init: float = 1.0,
        weight_bounds: tuple[float, float] = (0.0, float("inf")),
        update_masked: bool = False,
        weight_storage: Storage = "memory",
        nonfinite: Literal["stop", "skip"] = "stop",
        influence_batchnorm: Literal["eval", "train"] = "eval",
        optimizer: OptimizerCallable = default_optimizer,
        decay_all: bool = False,
        schedule: Schedule = "cosine_7_16",
        lr_warmup_steps: int = 0,
        clip_norm: float | None = None,
        accumulate: int = 1,
        ema_decay: float = 0.999,
        symmetric_binary_head: bool = True,
        labeled_augmentation: list[nn.Module] | None = None,
        channels_last: bool = True,
        compile: bool = False,
        target_pass: Literal["joint", "apart"] = "joint",
    ) -> None:
        super().__init__()
        require("model.inner_steps", inner_steps, inner_steps >= 1, "must be at least 1")
        require("model.warmup_steps", warmup_steps, warmup_steps >= 0, "must be at least 0")
        require(
            "model.weight_lr", weight_lr, weight_lr > 0, "must be above 0; weighting: fixed leaves λ alone"
        )
        require("model.accumulate", accumulate, accumulate >= 1, "must be at least 1")
        require("model.lr_warmup_steps", lr_warmup_steps, lr_warmup_steps >= 0, "must be at least 0")
        require("model.ema_decay", ema_decay, 0 <= ema_decay < 1, "must be at least 0 and below 1")
        low, high = weight_bounds
        require(
            "model.weight_bounds", list(weight_bounds), 0 <= low < high, "must be [low, high], 0 ≤ low < high"
        )
        require("model.weight_init", weight_init, low <= weight_init <= high, f"must lie in [{low}, {high}]")
        ignored = weighting == "fixed" and weight_init == 0 and bool(algorithm.views)
        require(
            "model.weight_init",
            weight_init,
            not ignored,
            "with weighting: fixed nothing unlabelled would count; give 1",
        )
        if clip_norm is not None:
            require("model.clip_norm", clip_norm, clip_norm > 0, "must be above 0; null for no clipping")
        if weight_storage == "disk" and weight_optimizer == "adam":
            raise UserError(
                "model.weight_storage=disk: weight_optimizer: adam moves every row; use masked_adam"
            )
        self.automatic_optimization = False

        self.model = Classifier(
            backbone, num_classes, symmetric_binary_head, algorithm.extra_heads, target_pass == "apart"
        )
        if channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = MovingAverage(self.model, ema_decay)
        self.algorithm = algorithm
        self.labeled_augmentation = nn.ModuleList(labeled_augmentation or ())
        self.influence = ExactLastLayer() if influence is None else influence
        self.num_classes, self.weighting, self.symmetric_binary_head = (
            num_classes,
            weighting,
            symmetric_binary_head,
        )
        self.inner_steps, self.warmup_steps = inner_steps, warmup_steps
        self.weight_lr, self.weight_optimizer, self.bias_correction = (
            weight_lr,
            weight_optimizer,
            bias_correction,
        )
        self.weight_init, self.weight_bounds = weight_init, (float(low), float(high))
        self.update_masked, self.influence_batchnorm = update_masked, influence_batchnorm
        self.weight_storage, self.nonfinite, self.skipped = weight_storage, nonfinite, 0
        self.make_optimizer, self.decay_all = optimizer, decay_all
        self.schedule, self.lr_warmup_steps = schedule, lr_warmup_steps
        self.clip_norm, self.accumulate, self.channels_last = clip_norm, accumulate, channels_last
        self.compiles, self._is_sharded = compile, False
        self.weights: ExampleWeights
        self.record: ExampleRecord
        self.directory: Path | None = None
        self.configuration = ""
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self._influence_batches: Iterator[tuple[dict[str, Examples], int, int]] | None = None
        self._influence_state: Any = None
        self._finite = FiniteGuard()
        self._evaluated: dict[str, Tensor] = {}
        self.latest: dict[str, float] = {}
        """The newest value of everything logged, for progress displays."""

    # ---- Algorithm 1 --------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Examples], batch_idx: int) -> None:
        """One θ step (lines 4 and 5) and, when N of them are done, one Λ step (lines 7 to 12)."""
        self._seed("theta", self.global_step * self.accumulate + batch_idx % self.accumulate)
        self._theta_step(batch, batch_idx)
        stepped = (batch_idx + 1) % self.accumulate == 0
        if stepped and self.learns_weights and self._inner_steps_are_done():
            fresh = self._next_influence_batch()  # before seeding: a loader that starts draws a number
            self._seed("lambda", self.global_step)
            torch.clear_autocast_cache()  # which holds low-precision copies of θ from before the step
            self._weight_step(fresh)

    def _theta_step(self, batch: dict[str, Examples], batch_idx: int) -> None:
        """θ ← θ − α ∇_θ L(D', U', θ, Λ), line 5 (Eq. 3)."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        if batch_idx % self.accumulate == 0:
            self._guesses: list[Guess] = []
            if self.nonfinite == "skip":
                self._before = Snapshot(self.model, self.algorithm, self.labeled_augmentation)
        objective = self._objective(batch)
        self._guesses += _guesses_of(objective)
        losses = [
            term.loss(weights) for term, weights in zip(objective.terms, objective.weights, strict=True)
        ]
        loss = torch.stack(losses).sum()
        if self.nonfinite == "stop":
            seen = {f"the loss term {t.name!r}": v for t, v in zip(objective.terms, losses, strict=True)}
            self._finite.see(self.global_step, seen)
            if self.device.type == "cpu":
                self._finite.check()
        else:
            self._before.see(loss)
        self.manual_backward(loss / self.accumulate)
        if (batch_idx + 1) % self.accumulate:
            return
        if self.nonfinite == "skip" and not self._before.stays_finite(self._gradients()):
            self._skip_theta_step(optimizer)
            return
        self._note(self._guesses)
        if self.influence.records_steps and self.learns_weights:
            self.influence.record_step(self._about_to_be_made(optimizer.optimizer, objective))
        if self.clip_norm is not None:
            self.clip_gradients(optimizer.optimizer, self.clip_norm, "norm")
        optimizer.step()
        optimizer.zero_grad()
        cast(LRScheduler, self.lr_schedulers()).step()
        self._share_running_statistics()
        self.ema.update(self.model)
        with torch.no_grad():
            self.algorithm.after_step(partial(self._labeled, batch["labeled"]), self._context())
        self._log_theta_step(objective, losses, loss)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _skip_theta_step(self, optimizer: LightningOptimizer) -> None:
        """Count the step and leave θ, the optimiser's state, the method's and batch norm's statistics as they were."""
        self.skipped += 1
        self._before.restore()
        optimizer.zero_grad()  # a parameter without a gradient does not move
        optimizer.step()
        cast(LRScheduler, self.lr_schedulers()).step()
        self._log_now({"train/skipped": self.skipped})

    @torch.no_grad()
    def _share_running_statistics(self) -> None:
        """Batch norm's running statistics averaged over the processes, so that all hold the same network."""
        if process_count() == 1:
            return
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        running = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
        if running:
            means = torch.split(averaged(torch.cat(running)), [len(b) for b in running])
            torch._foreach_copy_(running, list(means))

    def _about_to_be_made(self, optimizer: Optimizer, objective: Objective) -> ThetaStep:
        """The θ step whose gradient stands ready, for influences that walk it backwards."""
        parameters = dict(self.model.named_parameters())
        group = optimizer.param_groups[0]
        decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        scale = 1.0
        if self.clip_norm is not None:
            gradients = [p.grad for p in parameters.values() if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            scale = min(1.0, self.clip_norm / (float(norm) + 1e-6))  # as torch clips
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

    def _weight_step(self, batch: dict[str, Examples]) -> None:
        """λ_u ← λ_u − η ∂L_S(V', θ*(Λ))/∂λ_u for the u in U', lines 8 to 12 (Eq. 4 and 6)."""
        with self._influence_mode(), torch.no_grad():
            objective = self._objective(batch)
            validation = self._validation_term(batch["validation"])
            with torch.autocast(self.device.type, enabled=False):
                try:
                    influences = self.influence(self.model, objective, validation)  # lines 9 to 11
                except NonFiniteError:
                    if self.nonfinite == "stop":
                        raise
                    influences = [term.mask * torch.nan for term in objective.terms if term.index is not None]
        terms = [term for term in objective.terms if term.index is not None]
        index = torch.cat([term.index for term in terms])  # type: ignore[misc]
        masks = [torch.ones_like(t.mask) if self.update_masked else t.mask for t in terms]
        gradient = torch.cat([mask * influence for mask, influence in zip(masks, influences, strict=True)])
        index, gradient = all_processes(index), all_processes(gradient)  # the same Λ step everywhere
        if self.nonfinite == "skip" and not gradient.isfinite().all():
            self.skipped += 1
            self._log_now({"train/skipped": self.skipped})
            return
        self._finite.see(self.global_step, {"the influence": gradient.sum()})
        self._finite.check()  # before Λ moves
        self.weights.step(index, gradient, len(batch["unlabeled"].index) * process_count())  # line 12
        self._note(_guesses_of(objective))
        self.record.moved(index, gradient)
        self._log_weight_step(index, gradient, validation)

    def _objective(self, batch: dict[str, Examples]) -> Objective:
        """L(D', U', θ, Λ): the method's loss terms, and the λ of their examples."""
        labeled, unlabeled = self._shown(batch["labeled"], batch["unlabeled"])
        terms = self.algorithm.loss_terms(self.model, labeled, unlabeled, self._context())
        return Objective(terms, [None if t.index is None else self.weights.gather(t.index) for t in terms])

    def _note(self, guesses: list[Guess]) -> None:
        """Record what unlabelled examples were compared to, in a step that was made."""
        for index, target, confidence in guesses:
            self.record.saw(index, target, confidence)

    def _inner_steps_are_done(self) -> bool:
        """Whether the warm-up is over and N θ steps have passed since the last Λ step."""
        since = self.global_step - self.warmup_steps
        return since > 0 and since % self.inner_steps == 0

    @property
    def learns_weights(self) -> bool:
        """Whether there is a Λ to learn: not with ``fixed``, and not where no unlabelled example is looked at."""
        return self.weighting != "fixed" and bool(self.algorithm.views)

    # ---- what callbacks look at ----------------------------------------------------------------------------

    def split(self) -> Split:
        """The split of the data that the run trains on."""
        split = self._data().split
        assert split is not None
        return split

    def sampled(self) -> Tensor:
        """Positions of the unlabelled examples that statistics look at: all, or an even sample of about 2**20."""
        return torch.arange(0, self.weights.size, -(-self.weights.size // SAMPLE))

    @torch.no_grad()
    def known(self, positions: Tensor) -> tuple[Tensor, Happened]:
        """λ of unlabelled examples by their positions (n,), on the CPU, and what happened to them, (n,) each.

        With weights that are sharded every process must ask.
        """
        positions = positions.to(self.device)
        weights, happened = self.weights.gather(positions), self.record.gather(positions)
        return weights.cpu(), Happened(*(column.cpu() for column in happened))

    def unlabeled_labels(self) -> Tensor:
        """True labels (|U|,) int64 of the unlabelled examples, −1 where unknown. Never trained on."""
        return self._data().sets["unlabeled"].labels

    def judged_labels(self, positions: Tensor) -> Tensor:
        """Labels (n,) int64 to judge unlabelled examples by, from their positions (n,).

        −1 where unknown, and of the labelled examples in the pool, whose labels training has seen.
        """
        split = self.split()
        seen = torch.isin(split.unlabeled[positions], split.labeled)
        return self.unlabeled_labels()[positions].masked_fill(seen, -1)

    # ---- batches ------------------------------------------------------------------------------------------

    def _shown(self, labeled: Examples, unlabeled: Examples) -> tuple[Labeled, Unlabeled]:
        """The batches as the method wants to see them."""
        views = {name: self._view(unlabeled.inputs, steps) for name, steps in self.algorithm.views.items()}
        return self._labeled(labeled, self._labeled_view()), Unlabeled(unlabeled.index, views)

    def _labeled_view(self) -> View:
        return (*self.algorithm.labeled_view, *self.labeled_augmentation)

    def _labeled(self, labeled: Examples, steps: View) -> Labeled:
        """Labelled examples in a view."""
        target = F.one_hot(labeled.labels, self.num_classes).to(self.dtype)
        return Labeled(self._view(labeled.inputs, steps), target)

    def _view(self, raw: Any, steps: View) -> Any:
        with torch.autocast(self.device.type, enabled=False), torch.no_grad():
            return self._laid_out(self._data().view(raw, steps))

    def _validation_term(self, batch: Examples) -> LossTerm:
        """L_S(V', θ): cross-entropy on validation examples as they are."""
        with torch.autocast(self.device.type, enabled=False):
            inputs = self._laid_out(self._data().view(batch.inputs, ()))
        target = F.one_hot(batch.labels, self.num_classes).to(self.dtype)
        return supervised_term(self.model(inputs), target)

    def _next_influence_batch(self) -> dict[str, Examples]:
        """Fresh D', U' and V' (line 7). Their loaders are read at Λ steps only."""
        if self._influence_batches is None:
            data = self._data()
            parts = {
                "labeled": ("labeled", data.labeled_batch_size),
                "unlabeled": ("unlabeled", data.unlabeled_batch_size),
                "validation": (
                    "validation",
                    min(
                        data.validation_batch_size,
                        -(-len(data.sets["validation"]) // self.trainer.world_size),
                    ),
                ),
            }
            done = (self.global_step - self.warmup_steps) // self.inner_steps - 1
            self._influence_batches = iter(
                data.streams(
                    parts, f"{self.seed} influence", done, None, self.global_rank, self.trainer.world_size
                )
            )
        batch, _, _ = next(self._influence_batches)
        moved: dict[str, Examples] = self.trainer.strategy.batch_to_device(batch, self.device)
        return moved

    def _laid_out(self, inputs: Any) -> Any:
        def one(x: Tensor) -> Tensor:
            if not x.is_floating_point():
                return x
            images = self.channels_last and x.dim() == 4
            return x.to(self.dtype, memory_format=torch.channels_last if images else torch.preserve_format)

        return pytree.tree_map(one, inputs)

    def _data(self) -> SSLData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, SSLData)
        return data

    def _context(self) -> Context:
        return Context(self.global_step, self.trainer.max_steps, cast(Model, self.ema.model))

    @contextmanager
    def _influence_mode(self) -> Iterator[None]:
        """Dropout off; batch norm as chosen, its running statistics left alone; nothing compiled."""
        was = {module: module.training for module in self.model.modules()}
        self.model.eval()
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        kept = [(m, m.momentum, m.num_batches_tracked) for m in norms]
        if self.influence_batchnorm == "train":
            for norm in norms:
                norm.train()
                norm.momentum = 0.0
                norm.num_batches_tracked = None
        eager = torch.compiler.set_stance("force_eager") if self.compiles else nullcontext()
        try:
            with eager:
                yield
        finally:
            for norm, momentum, tracked in kept:
                norm.momentum, norm.num_batches_tracked = momentum, tracked
            for module, training in was.items():
                module.training = training

    def _seed(self, purpose: str, number: int) -> None:
        """Make what is drawn from here on a function of seed and step, so that a resumed run draws the same."""
        key = f"{self.seed} {purpose} {number} {self.global_rank}"
        value = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
        # torch.manual_seed queues a call, with its stack, for every kind of device that was never used
        torch.default_generator.manual_seed(value)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(value)

    # ---- set-up -------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Make Λ as long as the unlabelled list."""
        data = self._data()
        data.training_batches = self._training_batches
        check_precision(self.trainer.precision)
        check_classes(self.num_classes, data)
        check_vocabulary(self.model.backbone, data)
        if stage == "fit" and self.trainer.max_steps < 1:
            raise UserError(
                f"trainer.max_steps={self.trainer.max_steps}: say how many θ steps to train, at least 1"
            )
        if not hasattr(self, "weights"):
            self.algorithm.prepare(data.num_unlabeled, self.num_classes)
            size, file, sharded = data.num_unlabeled, None, self.weight_storage == "sharded"
            if self.weight_storage == "disk":
                file = self._row_file(size) if stage == "fit" else None
                size = size if stage == "fit" else 0  # the checkpoint holds none
            moves = self.weight_optimizer if self.weighting != "fixed" else "sgd"  # which keeps no state
            self.weights = ExampleWeights(
                size,
                make_rule(moves, self.weight_lr, self.bias_correction),
                self.weight_init,
                self.weight_bounds,
                shared=self.weighting == "single",
                sharded=sharded,
                file=file,
            )
            self.record = ExampleRecord(size, sharded, file)
        if stage == "fit" and self.compiles:
            require_compiler(self.trainer.strategy.root_device)
            self.model.backbone.compile()  # in place, unlike torch.compile: parameters keep their names
        # All processes load and compute the same buffers, batch norm's but for an average of their own: DDP would
        # send all of them, Λ too, at every step.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def configure_model(self) -> None:
        """Divide θ and its average among the processes, where the strategy does."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, FullySharded) or self._is_sharded:
            return
        for key, value, fine in (
            ("influence", type(self.influence).__name__, not self.influence.reads_parameters),
            ("compile", self.compiles, not self.compiles),
            ("nonfinite", self.nonfinite, self.nonfinite == "stop"),
        ):
            if not fine:
                raise UserError(
                    f"model.{key}={value}: not with trainer.strategy=fsdp2, which keeps a part of θ in each process; "
                    "use ddp, or leave it at its default"
                )
        for network in (self.model, cast(Classifier, self.ema.model)):
            shard(network, strategy.device_mesh["data_parallel"])
        self._data().divides_evaluation = False  # all processes have to make the same passes
        self._is_sharded = True

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Try views, network and influence on a few examples, so that what does not fit is said before training.

        Not in :meth:`setup`, where the network is not yet on the device that it will be trained on.
        """
        data, method = self._data(), f"model.algorithm={type(self.algorithm).__name__}"
        network = f"model.backbone={type(self.model.backbone).__name__}"
        influence = f"model.influence={type(self.influence).__name__}: it"
        labeled = self._few("labeled", min(data.labeled_batch_size, FEW))
        examples = f"the data's examples, of shape {shapes(labeled.inputs)}"
        context = replace(
            self._context(), step=self.trainer.max_steps
        )  # all that is ramped up counts in full
        keeps_state = (self.model, self.ema, self.algorithm, self.labeled_augmentation)
        precision = self.trainer.precision_plugin.train_step_context()
        with isolate_rng(), unchanged_buffers(*keeps_state), self._influence_mode(), precision:
            with fits(f"{method}: its views", examples):
                unlabeled = self._few("unlabeled", min(data.unlabeled_batch_size, FEW))
                shown = self._shown(labeled, unlabeled)
            with fits(f"{network}: it", examples):
                self.model(shown[0].inputs)
            if not self.learns_weights:
                return
            with fits(f"{method}: its loss", examples):
                terms = self.algorithm.loss_terms(self.model, *shown, context)
            validation = self._validation_term(
                self._few("validation", min(data.validation_batch_size, 2 * FEW))
            )
            weights = [None if t.index is None else torch.full_like(t.mask, self.weight_init) for t in terms]
            with torch.autocast(self.device.type, enabled=False), fits(influence, network):
                try_influence(self.influence, self.model, Objective(terms, weights), validation)

    def _few(self, part: str, number: int) -> Examples:
        """Examples from all over a list of the split, on the network's device."""
        examples = self._data().sets[part]
        few = examples.__getitems__([i * len(examples) // number for i in range(number)])
        device = next(self.model.parameters()).device
        moved: Examples = pytree.tree_map_only(Tensor, lambda x: x.to(device), few)
        return moved

    def _row_file(self, size: int) -> RowFile:
        """``weights.rows`` in the run's folder, made by the first process."""
        path = (self.directory or Path(self.trainer.default_root_dir)) / "weights.rows"
        if self.trainer.is_global_zero:
            RowFile(path, size, row_defaults(self.weight_init))
        self.trainer.strategy.barrier("weights.rows")
        return RowFile(path, size, row_defaults(self.weight_init))

    def _training_batches(self) -> CombinedLoader:
        """Labelled and unlabelled batches side by side, from the θ step at which the run stands."""
        data = self._data()
        parts = {
            "labeled": ("labeled", data.labeled_batch_size),
            "unlabeled": ("unlabeled", data.unlabeled_batch_size),
        }
        start, stop = self.global_step * self.accumulate, self.trainer.max_steps * self.accumulate
        return data.streams(
            parts, f"{self.seed} theta", start, stop, self.global_rank, self.trainer.world_size
        )

    def configure_optimizers(self) -> Any:
        """θ's optimiser and schedule. Λ's is not registered: every registered optimiser's step counts as a step."""
        optimizer = self._new_optimizer()
        self._optimizer_options = options_of(optimizer)  # before a schedule adds to them
        if self.influence.records_steps and not (
            isinstance(optimizer, torch.optim.SGD) and self.accumulate == 1
        ):
            raise UserError(
                f"model.influence={type(self.influence).__name__}: walks back through steps of torch.optim.SGD with "
                "model.accumulate=1; use them, or another influence"
            )
        return [optimizer], [
            make_schedule(optimizer, self.schedule, self.trainer.max_steps, self.lr_warmup_steps)
        ]

    def _new_optimizer(self) -> Optimizer:
        """θ's optimiser as the options ask for it, without state."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        kernels = [p for p in parameters if p.dim() > 1 or self.decay_all]
        others = [p for p in parameters if not (p.dim() > 1 or self.decay_all)]
        groups: list[dict[str, Any]] = [{"params": kernels}]
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
        try:
            return self.make_optimizer(groups)
        except (ValueError, TypeError) as error:
            raise UserError(f"model.optimizer: {error}") from error

    # ---- evaluation ---------------------------------------------------------------------------------------

    def validation_step(self, batch: Examples, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Error and loss of the averaged θ on the validation set and, if asked for, the test set."""
        self._evaluate(batch, "test" if dataloader_idx else "validation")

    def test_step(self, batch: Examples, batch_idx: int) -> None:
        """Error and loss of the averaged θ on the test set."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log errors and losses."""
        self._log_evaluation()

    def on_test_epoch_end(self) -> None:
        """Log error and loss."""
        self._log_evaluation()

    def predict_step(self, *_: Any) -> None:
        """Not by Lightning's ``Trainer.predict``, which has no way to name the examples.

        Raises:
            UserError: Naming the way.
        """
        raise UserError(NO_TRAINER_PREDICT)

    def probabilities(self, inputs: Any) -> Tensor:
        """Class probabilities (B, C) of the averaged θ, for inputs as the data module's ``view`` gives them."""
        with torch.autocast(self.device.type, enabled=False):
            inputs = self._laid_out(inputs)
        probabilities: Tensor = self.ema.model(inputs).probabilities()
        return probabilities

    def _evaluate(self, batch: Examples, name: str) -> None:
        with torch.autocast(self.device.type, enabled=False):
            inputs = self._data().view(batch.inputs, ())
        probabilities = self.probabilities(inputs)
        wrong = (probabilities.argmax(-1) != batch.labels).sum()
        loss = F.nll_loss(probabilities.clamp_min(1e-12).log(), batch.labels, reduction="sum")
        sums = torch.stack((wrong.to(loss), loss, loss.new_tensor(len(batch.labels))))
        self._evaluated[name] = self._evaluated.get(name, 0) + sums

    def _log_evaluation(self) -> None:
        values: dict[str, Any] = {}
        for name, sums in self._evaluated.items():
            wrong, loss, count = self.trainer.strategy.reduce(sums, reduce_op="sum")
            values |= {f"{name}/error": wrong / count, f"{name}/loss": loss / count}
        self._evaluated = {}
        # For callbacks and for what trainer.test returns.
        self.log_dict(values, logger=False, sync_dist=process_count() > 1)
        self._log_now(values)

    # ---- logs ---------------------------------------------------------------------------------------------

    def _log_theta_step(self, objective: Objective, losses: list[Tensor], loss: Tensor) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or self.global_step % every:
            return
        self._finite.check()
        rate = cast(LightningOptimizer, self.optimizers()).param_groups[0]["lr"]
        values: dict[str, Any] = {"train/loss": loss, "train/lr": rate}
        for term, value in zip(objective.terms, losses, strict=True):
            values[f"train/{term.name}"] = value
            if term.index is not None:
                values[f"train/{term.name}_mask"] = term.mask.mean()
        self._log_now(values)

    def _log_weight_step(self, index: Tensor, gradient: Tensor, validation: LossTerm) -> None:
        moved = self.weights.gather(index)
        self._log_now(
            {
                "influence/mean": gradient.mean(),
                "influence/std": gradient.std(correction=0),
                "influence/harmful": (gradient > 0).float().mean(),
                "influence/validation_loss": validation.loss(),
                "weights/batch_mean": moved.mean(),
                "weights/batch_std": moved.std(correction=0),
            }
        )

    def _log_now(self, values: dict[str, Any]) -> None:
        """Means over the processes to all loggers, at the present θ step. Waits for the device, so not every step."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        told = [torch.as_tensor(value, dtype=dtype, device=self.device).detach() for value in values.values()]
        numbers = dict(zip(values, averaged(torch.stack(told)).tolist(), strict=True))
        self.latest.update(numbers)
        for logger in self.loggers:
            logger.log_metrics(numbers, step=self.global_step)

    # ---- checkpoints --------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Hand the influence what a checkpoint kept of it."""
        if self._influence_state is not None:
            on_device = partial(pytree.tree_map_only, Tensor, lambda x: x.to(self.device))
            self.influence.restore(on_device(self._influence_state))
            self._influence_state = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run must agree with; refuse to save a state that is not finite."""
        self._finite.check()
        split = self.split()
        # Callbacks save as soon as a run goes on, before the influence was handed what it had.
        influence = self.influence.state() if self._influence_state is None else self._influence_state
        optimizer = cast(LightningOptimizer, self.optimizers()).optimizer
        checkpoint["ssl_weighting"] = {
            "optimizer": type(optimizer).__name__,
            "groups": group_sizes(optimizer),
            "options": self._optimizer_options,
            "begun": {name: getattr(self, name) for name in BEGUN},
            "data_set": split.data_set,
            "split_sha256": split.sha256(),
            "seed": self.seed,
            "processes": process_count(),
            "skipped": self.skipped,
            "configuration": self.configuration,
            "memory": self._data().to_remember(),
            "influence": influence if influence is None or process_count() == 1 else all_objects(influence),
        }
        state = checkpoint["state_dict"]
        for name, rows in (("weights.", self.weights), ("record.", self.record)):
            state.update(rows.whole({key: value for key, value in state.items() if key.startswith(name)}))

    @classmethod
    def load_from_checkpoint(cls, *_: Any, **__: Any) -> Any:
        """Not the way to a trained model, which needs the data's preprocessing as well.

        Raises:
            UserError: Naming the way.
        """
        raise UserError(
            "SSLModule.load_from_checkpoint: use ssl_weighting.load(RUN), which knows the run's preprocessing and classes"
        )

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """See torch; a state that does not fit is put down to the option that was changed.

        Raises:
            UserError: Naming it.
        """
        try:
            return super().load_state_dict(*arguments, **options)
        except RuntimeError as error:
            raise misfit(error) from None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another data set or split; go on with the seed of the run that saved it."""
        if "ssl_weighting" not in checkpoint:
            raise UserError(
                "ckpt_path: this checkpoint was not written by this program; give the folder of a run"
            )
        saved = checkpoint["ssl_weighting"]
        split = self.split()
        if saved["data_set"] != split.data_set:
            raise UserError(
                f"data: the run was trained on {saved['data_set']}, but data is {split.data_set}; "
                "leave options of data out"
            )
        if saved["split_sha256"] != split.sha256():
            raise UserError(
                "data: the run was trained on another split of the data; give its own with --data.split RUN/split.json"
            )
        processes = saved.get("processes", 1)
        if saved["influence"] is not None and processes != process_count() and self.trainer.training:
            raise UserError(
                f"trainer.devices: the checkpoint's influence remembers the batches of {processes} processes, but "
                f"{process_count()} are running; go on with as many"
            )
        if self.trainer.training:
            check_begun(saved, {name: getattr(self, name) for name in BEGUN})
            (optimizer,), (schedule,) = self.configure_optimizers()
            check_optimizer(saved, optimizer)
            take_options(checkpoint, self._optimizer_options, schedule)
        self.seed, self.skipped = saved["seed"], saved.get("skipped", 0)
        several = saved["influence"] is not None and processes > 1
        self._influence_state = saved["influence"][self.global_rank] if several else saved["influence"]
        state = checkpoint["state_dict"]
        for name, rows in (("weights.", self.weights), ("record.", self.record)):
            state.update(rows.own({key: value for key, value in state.items() if key.startswith(name)}))
        state["weights.values"] = state["weights.values"].clamp(*self.weight_bounds)
        steps = state["weights._extra_state"]["steps"]
        counts = steps if self.weights.shared else state["record.updates"]
        columns = self.weights.rule.columns
        if state["weights.moments"].shape[1] != columns:
            state["weights.moments"] = fitted_moments(state["weights.moments"], columns, counts)
        if self.weights.file is not None:
            if self.trainer.is_global_zero:
                self.weights.file.open_at(checkpoint["global_step"])
            self.trainer.strategy.barrier("weights.rows")
            self.weights.file.open_at(checkpoint["global_step"])


def _guesses_of(objective: Objective) -> list[Guess]:
    return [
        (term.index, term.target, term.confidence)
        for term in objective.terms
        if term.index is not None and term.head == "classifier"
    ]
