"""Algorithm 1 of the paper, N steps on θ and one on Λ, as a LightningModule with manual optimisation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_weighting import resumption
from ssl_weighting.algorithms.base import Algorithm, Context
from ssl_weighting.backbones.base import Backbone, Classifier
from ssl_weighting.checks import require
from ssl_weighting.data.module import NO_TRAINER_PREDICT, SSLData
from ssl_weighting.data.source import LabeledBatch
from ssl_weighting.data.split import Split
from ssl_weighting.distributed import averaged, process_count
from ssl_weighting.ema import MovingAverage
from ssl_weighting.encoder import FeatureOptions, divided
from ssl_weighting.encoding import encode
from ssl_weighting.errors import NonFiniteError, UserError
from ssl_weighting.evaluation import Evaluation
from ssl_weighting.fsdp import FullySharded, check_divisible, shard
from ssl_weighting.guards import at_step, check_setup
from ssl_weighting.influence import ExactLastLayer, Influence
from ssl_weighting.modes import evaluation_mode
from ssl_weighting.protocols import Model
from ssl_weighting.randomness import seed_by
from ssl_weighting.survey import take_survey
from ssl_weighting.terms import Objective
from ssl_weighting.theta import Step, Theta, ThetaOptions, keep_to_scope
from ssl_weighting.trial import Trial
from ssl_weighting.views import Batches, Views, laid_out
from ssl_weighting.weighting import Weighting, WeightingOptions
from ssl_weighting.weighting.row_file import open_rows_at


class SSLModule(LightningModule):
    """Semi-supervised training with a learned weight for every unlabelled example (Algorithm 1).

    Args:
        num_classes: C; taken from the data.
        backbone: The network that makes the features; a linear head is added.
        algorithm: The SSL method.
        influence: How dL(V')/dλ_u is approximated (Eq. 6): inverse Hessian and scope. Default: the exact last layer,
            the paper's choice (Sec. 3.1).
        weighting: How Λ is learned, and where it is kept.
        theta: How θ is trained.
        features: With a frozen backbone: how its features are kept, which are all that training sees.
        nonfinite: ``stop`` with an error at a loss or influence that is NaN or infinite, or ``skip`` that θ or Λ
            step and go on; skipped steps are counted in ``train/skipped``. Skipping waits for the device every step.
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
        weighting: WeightingOptions = WeightingOptions(),  # noqa: B008  (frozen)
        theta: ThetaOptions = ThetaOptions(),  # noqa: B008
        features: FeatureOptions = FeatureOptions(),  # noqa: B008
        nonfinite: Literal["stop", "skip"] = "stop",
        symmetric_binary_head: bool = True,
        labeled_augmentation: list[nn.Module] | None = None,
        channels_last: bool = True,
        compile: bool = False,
        target_pass: Literal["joint", "apart"] = "joint",
    ) -> None:
        super().__init__()
        ignored = weighting.kind == "fixed" and weighting.init == 0 and bool(algorithm.views)
        nothing = "with kind: fixed nothing unlabelled would count; give 1"
        require("model.weighting.init", weighting.init, not ignored, nothing)
        self.automatic_optimization = False
        (self.encoder, backbone), self.features = divided(backbone, features), features
        heads = algorithm.extra_heads(num_classes)
        self.model = Classifier(backbone, num_classes, symmetric_binary_head, heads, target_pass == "apart")
        keep_to_scope(self.model, theta.scope)
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = MovingAverage(self.model, theta.ema_decay)
        self.algorithm = algorithm
        self.labeled_augmentation = nn.ModuleList(labeled_augmentation or ())
        self.weighting = Weighting(weighting, influence or ExactLastLayer(), learns=bool(algorithm.views))
        changed = (algorithm, self.labeled_augmentation)
        self.evaluations = nn.ModuleDict({"validation": Evaluation(), "test": Evaluation()})
        self.theta = Theta(theta, self.model, self.ema, changed, nonfinite == "skip")
        self.num_classes, self.symmetric_binary_head = num_classes, symmetric_binary_head
        self.nonfinite = nonfinite
        self.channels_last, self.compiles, self._is_sharded = channels_last, compile, False
        self.batches_per_step = theta.accumulate
        self.skipped = 0
        self.directory: Path | None = None
        self.configuration = ""
        self._fresh: Iterator[tuple[Batches, int, int]] | None = None
        self._influence_state: Any = None
        self.latest: dict[str, float] = {}
        """The newest value of everything logged, for progress displays."""

    # ---- Algorithm 1 --------------------------------------------------------------------------------------

    def training_step(self, batch: Batches, batch_idx: int) -> None:
        """One batch of lines 4 and 5; after N θ steps, lines 7 to 12. The loop of line 2 is Lightning's."""
        self.draw_by("theta", self.global_step * self.batches_per_step + batch_idx % self.batches_per_step)
        self.theta.begin(batch_idx)
        objective = self.objective(batch)  # line 4: L(D', U', θ, Λ)
        done = self.theta.step(objective, batch_idx, self.global_step, self, self.recorder)  # line 5: θ moves
        if done is None:
            return  # gradients still accumulate
        self.after_theta_step(batch, objective, done)
        self.survey_the_pool()
        if self.weighting.due(self.global_step):  # lines 3 and 6
            fresh = self.fresh_batch()  # line 7; before the next line: a loader that starts draws a number
            self.draw_by("lambda", self.global_step)
            batchnorm = self.weighting.options.batchnorm
            with evaluation_mode(self.model, batchnorm, self.compiles), torch.no_grad():
                objective = self.objective(fresh)  # line 8
                held_out = fresh.get("validation")
                validation = self.views.validation_term(cast(Model, self.model), held_out, objective.terms)
                self.weight_step(objective, validation)  # lines 9 to 12: Λ moves

    def objective(self, batch: Batches) -> Objective:
        """L(D', U', θ, Λ): the method's loss terms, and the λ of their examples."""
        terms = self.algorithm.loss_terms(cast(Model, self.model), *self.views.of(batch), self.context)
        return self.weighting.weighted(list(terms))

    def after_theta_step(self, batch: Batches, objective: Objective, done: Step) -> None:
        """Note what the step was made of, and let the method learn what it learns besides."""
        if not done.made:
            self._skip()
            return
        self.weighting.note(done.predictions)
        with torch.no_grad():
            self.algorithm.after_step(self.views.show(batch), self.context)
        self._log_theta_step(objective, done)

    def weight_step(self, objective: Objective, validation: Any) -> None:
        """λ_u ← λ_u − η ∂L_S(V', θ*(Λ))/∂λ_u, or nothing where that is not finite."""
        self.theta.finite.check()
        try:
            with torch.autocast(self.device.type, enabled=False):
                self._log_now(self.weighting.step(self.model, objective, validation).numbers())
        except NonFiniteError as error:
            if self.nonfinite == "stop":
                raise at_step(error, self.global_step) from error
            self._skip()

    def fresh_batch(self) -> Batches:
        """Fresh D', U' and V' (line 7). Their loaders are read at Λ steps only."""
        if self._fresh is None:
            self._fresh = iter(self.data.influence_batches(self.weighting.steps_due(self.global_step) - 1))
        batch, _, _ = next(self._fresh)
        moved: Batches = self.trainer.strategy.batch_to_device(batch, self.device)
        return moved

    def draw_by(self, purpose: str, number: int) -> None:
        """Make what is drawn from here on a function of seed and step, so that a resumed run draws the same."""
        seed_by(f"{self.data.seed} {purpose} {number} {self.global_rank}", self.device)

    def _skip(self) -> None:
        self.skipped += 1
        self._log_now({"train/skipped": self.skipped})

    # ---- what the steps are made of -------------------------------------------------------------------------

    @property
    def data(self) -> SSLData:
        """The data module that the trainer was given."""
        return cast(SSLData, self.trainer.datamodule)  # type: ignore[attr-defined]

    def split(self) -> Split:
        """The split of the data that the run trains on."""
        assert self.data.split is not None
        return self.data.split

    @property
    def views(self) -> Views:
        """Batches as the method wants to see them."""
        return self.views_of(self.data)

    def views_of(self, data: SSLData) -> Views:
        """What shows the network a data module's batches."""
        parts = (data, self.algorithm, self.labeled_augmentation, self.num_classes)
        return Views(*parts, cast(torch.dtype, self.dtype), self.channels_last, self.encoder)

    @property
    def context(self) -> Context:
        """Where training stands."""
        return Context(self.global_step, self.trainer.max_steps, cast(Model, self.ema.model))

    @property
    def recorder(self) -> Influence | None:
        """The influence, if it wants to see θ's steps."""
        influence = self.weighting.influence
        return influence if influence.records_steps and self.weighting.learns else None

    def configure_optimizers(self) -> Any:
        """θ's optimiser and schedule. Λ's is not registered: every registered optimiser's step counts as a step."""
        optimizer = self.theta.new_optimizer(self.recorder)
        self._optimizer_options = resumption.options_of(optimizer)  # before a schedule adds to them
        return [optimizer], [self.theta.new_schedule(optimizer, self.trainer.max_steps)]

    # ---- set-up -------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Make Λ as long as the unlabelled list; show a frozen encoder all examples."""
        data, device, fits = self.data, self.trainer.strategy.root_device, stage == "fit"
        backbone = self.encoder.backbone if self.encoder else self.model.backbone
        compiles_for = device if fits and self.compiles else None
        check_setup(self.num_classes, backbone, data, self.trainer, fits, compiles_for)
        if not hasattr(self.weighting, "weights"):
            self.algorithm.prepare(data.num_unlabeled, self.num_classes)
            folder = self.directory or Path(self.trainer.default_root_dir)
            self.weighting.allocate_in(folder, self.split().unlabeled, fits, self.trainer.strategy)
        frozen: list[str] = []
        if self.encoder is not None:
            encode(self.encoder.to(device), self.views, self.features, device, self.trainer.strategy.barrier)
            frozen = [f"encoder.{name}" for name, _ in self.encoder.named_parameters()]
        if compiles_for is not None:
            self.model.backbone.compile()  # in place, unlike torch.compile: parameters keep their names
        # All processes load and compute the same buffers, batch norm's but for an average of their own: DDP would
        # send all of them, Λ too, at every step.
        self._ddp_params_and_buffers_to_ignore = [*dict(self.named_buffers()), *frozen]

    def configure_model(self) -> None:
        """Divide θ and its average among the processes, where the strategy does."""
        strategy = self.trainer.strategy
        if isinstance(strategy, FullySharded) and not self._is_sharded:
            influence = self.weighting.influence
            check_divisible(influence, compiled=self.compiles, skips=self.theta.skips)
            for network in (self.model, cast(Classifier, self.ema.model)):
                shard(network, strategy.device_mesh["data_parallel"])
            self.data.divides_evaluation = False  # all processes have to make the same passes
            self._is_sharded = True

    def on_fit_start(self) -> None:
        """Try views, network and influence on a few examples, so that what does not fit is said before training.

        Not in :meth:`setup`, where the network is not yet on the device that it will be trained on.
        """
        total = self.trainer.max_steps
        end = Context(total, total, cast(Model, self.ema.model))  # all that is ramped up counts in full
        keeps = (self.model, self.ema, self.algorithm, self.labeled_augmentation)
        trial = Trial(self.model, self.algorithm, self.views, self.weighting, end, keeps, self.compiles)
        trial.run(self.trainer.precision_plugin.train_step_context())

    # ---- evaluation ---------------------------------------------------------------------------------------

    def validation_step(self, batch: LabeledBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Error and loss of the averaged θ on the validation set and, if asked for, the test set."""
        self._evaluate(batch, "test" if dataloader_idx else "validation")

    def test_step(self, batch: LabeledBatch, batch_idx: int) -> None:
        """Error and loss of the averaged θ on the test set."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log errors and losses."""
        self._log_evaluation()

    def on_test_epoch_end(self) -> None:
        """Log error and loss."""
        self._log_evaluation()

    def predict_step(self, *_: Any) -> None:
        """Refused, for Lightning's ``Trainer.predict`` has no way to name the examples."""
        raise UserError(NO_TRAINER_PREDICT)

    def probabilities(self, inputs: Any) -> Tensor:
        """Class probabilities (B, C) of the averaged θ, for inputs as :meth:`Views.plain` gives them.

        In θ's own precision whatever the steps are made in, so that every machine predicts what training evaluated.
        """
        with torch.autocast(self.device.type, enabled=False):
            inputs = laid_out(inputs, cast(torch.dtype, self.dtype), self.channels_last)
            probabilities: Tensor = self.ema.model(inputs).probabilities()
        return probabilities

    def _evaluate(self, batch: LabeledBatch, part: str) -> None:
        self._evaluation(part).update(self.probabilities(self.views.plain(batch.inputs)), batch.labels)

    def _evaluation(self, part: str) -> Evaluation:
        return cast(Evaluation, self.evaluations[part])

    def _log_evaluation(self) -> None:
        seen = [part for part in self.evaluations if self._evaluation(part).seen]
        values = {
            f"{part}/{name}": v for part in seen for name, v in self._evaluation(part).compute().items()
        }
        self.log_dict(values, logger=False)  # for callbacks and for what trainer.test returns
        self._log_now(values)

    # ---- logs ---------------------------------------------------------------------------------------------

    def _log_theta_step(self, objective: Objective, done: Step) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self.global_step % every == 0:
            self.theta.finite.check()
            rate = cast(LightningOptimizer, self.optimizers()).param_groups[0]["lr"]
            self._log_now({"train/lr": rate, **done.numbers(objective)})

    def _log_now(self, values: dict[str, Any]) -> None:
        """Means over the processes to all loggers, at the present θ step. Waits for the device, so not every step."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        given = [torch.as_tensor(v, dtype=dtype, device=self.device).detach() for v in values.values()]
        self.record(dict(zip(values, averaged(torch.stack(given)).tolist(), strict=True)))

    def record(self, numbers: dict[str, float]) -> None:
        """Numbers to all loggers of this process, at the present θ step."""
        self.latest.update(numbers)
        for logger in self.loggers:
            logger.log_metrics(numbers, step=self.global_step)

    # ---- checkpoints --------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Hand the influence what a checkpoint kept of it; show the method the pool."""
        if self._influence_state is not None:
            on_device = pytree.tree_map_only(Tensor, lambda x: x.to(self.device), self._influence_state)
            self.weighting.influence.restore(on_device)
            self._influence_state = None
        if self.global_step == 0:  # a resumed run has seen it
            self.survey_the_pool()

    def survey_the_pool(self) -> None:
        """Show the method the whole pool, where it wants to see it now."""
        if self.algorithm.survey_due(self.context):
            self.algorithm.survey(take_survey(self.ema.model, self.views, self.global_step, self.device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run must agree with; refuse to save a state that is not finite."""
        self.theta.finite.check()
        # Callbacks save as soon as a run goes on, before the influence was handed what it had.
        kept = self._influence_state
        checkpoint["ssl_weighting"] = {
            **resumption.state_of_optimizer(self.optimizers(), self._optimizer_options),
            **resumption.state_of_influence(self.weighting.influence.state() if kept is None else kept),
            **resumption.state_of_split(self.split()),
            "format": resumption.FORMAT,
            "begun": self._begun(),
            "seed": self.data.seed,
            "skipped": self.skipped,
            "configuration": self.configuration,
            "memory": self.data.to_remember(),
        }
        self.weighting.gather_state(checkpoint["state_dict"], "weighting.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another data set or split; take from it what is no option."""
        saved = resumption.check_format(checkpoint)
        resumption.check_data(saved, self.split())
        if self.trainer.training:
            resumption.check_processes(saved, process_count())
            resumption.check_begun(saved, self._begun())
            (optimizer,), (schedule,) = self.configure_optimizers()
            resumption.check_optimizer(saved, optimizer)
            resumption.take_options(checkpoint, self._optimizer_options, schedule)
        self.skipped = saved["skipped"]
        self._influence_state = resumption.influence_state(saved, self.global_rank)
        self.weighting.scatter_state(checkpoint["state_dict"], "weighting.")
        if self.weighting.file is not None:
            open_rows_at(self.weighting.file, checkpoint["global_step"], self.trainer.strategy)

    def _begun(self) -> dict[str, Any]:
        weighting, theta = self.weighting.options, self.theta.options
        values = (self.num_classes, self.symmetric_binary_head, weighting.init, weighting.storage)
        return dict(zip(resumption.BEGUN, (*values, theta.accumulate, theta.decay_all), strict=True))

    @classmethod
    def load_from_checkpoint(cls, *_: Any, **__: Any) -> Any:
        """Refused, for a trained model needs the data's preprocessing as well."""
        raise UserError(
            "SSLModule.load_from_checkpoint: use ssl_weighting.load(RUN), which knows the run's preprocessing and classes"
        )

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """See torch; of a state that does not fit, a ``UserError`` names the option that was changed."""
        try:
            return super().load_state_dict(*arguments, **options)
        except RuntimeError as error:
            raise resumption.misfit(error) from None
