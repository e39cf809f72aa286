"""The loop, telling of what its parts take."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from lab.speed.turns import Turns
from ssl_weighting.module import SSLModule
from ssl_weighting.views import Views


class TimedViews(Views):
    """Tells of what it takes to show examples."""

    turns: Turns

    def of(self, batch: Any) -> Any:
        """See the base class; told of as its part."""
        with self.turns.span("weights" if "validation" in batch else "views"):
            return super().of(batch)

    def validation_term(self, network: Any, batch: Any, terms: Any) -> Any:
        """See the base class; told of as its part."""
        with self.turns.span("weights"):
            return super().validation_term(network, batch, terms)


class TimedModule(SSLModule):
    """The loop, telling of its views and of Λ."""

    turns: Turns

    @property
    def views(self) -> Views:
        """See the base class; told of as its part."""
        views = super().views
        views.__class__, views.turns = TimedViews, self.turns  # type: ignore[attr-defined]
        return views

    def objective(self, batch: Any) -> Any:
        """See the base class; told of as its part."""
        if "validation" not in batch:
            return super().objective(batch)
        shown = self.views.of(batch)
        with self.turns.span("weights"):
            terms = self.algorithm.loss_terms(self.model, *shown, self.context)  # type: ignore[arg-type]
            return self.weighting.weighted(list(terms))

    def fresh_batch(self) -> Any:
        """See the base class; told of as its part."""
        with self.turns.span("weights"):
            return super().fresh_batch()

    def weight_step(self, objective: Any, validation: Any) -> None:
        """See the base class; told of as its part."""
        with self.turns.span("weights"):
            super().weight_step(objective, validation)


class Watch(Callback):
    """Tells the turns where steps begin."""

    def __init__(self, turns: Turns) -> None:
        """See the base class; told of as its part."""
        self.turns = turns

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """See the base class; told of as its part."""
        self.turns.step()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """See the base class; told of as its part."""
        self.turns.arrived()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See the base class; told of as its part."""
        self.turns.step()
