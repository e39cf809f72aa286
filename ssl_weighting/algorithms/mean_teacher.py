"""Mean Teacher (Tarvainen & Valpola 2017), with the values of Google's MixMatch code."""

from __future__ import annotations

import torch

from ssl_weighting.algorithms.base import (
    Context,
    Labeled,
    RampedAlgorithm,
    Unlabeled,
    batch_statistics_of,
    paused_statistics,
    supervised_term,
    unlabeled_term,
)
from ssl_weighting.protocols import Model
from ssl_weighting.terms import SQUARED_ERROR, LossTerm


class MeanTeacher(RampedAlgorithm):
    """One view of an example is compared to what the averaged θ' says of another view.

    The loss of an unlabelled example of C classes is

        w(t) · ‖p(y | weak(u); θ) − p(y | weak'(u); θ')‖² / C

    The gradient flows through θ alone. The teacher's batch norm normalises by its own batch, as the student's
    does; the running statistics follow the labelled batch alone. θ' is the moving average that is evaluated
    too, of decay ``model.theta.ema_decay``.

    Args:
        coefficient: w after its ramp (50 for CIFAR-10, 150 for SVHN, 180 for SVHN with its extra images).
        ramp: Share of training over which w rises linearly from 0; 0 for none.
    """

    def __init__(self, coefficient: float = 50.0, ramp: float = 0.4) -> None:
        super().__init__(coefficient, ramp)
        self.views = {"student": ("weak",), "teacher": ("weak",)}

    def loss_terms(
        self, model: Model, labeled: Labeled, unlabeled: Unlabeled, context: Context
    ) -> list[LossTerm]:
        """See :meth:`Algorithm.loss_terms`."""
        known = model(labeled.inputs)
        with paused_statistics(model):
            student = model(unlabeled.views["student"])
        with torch.no_grad(), batch_statistics_of(model, context.ema):
            target = context.ema(unlabeled.views["teacher"]).probabilities()
        return [
            supervised_term(known, labeled.target),
            unlabeled_term(
                "consistency",
                student,
                target,
                SQUARED_ERROR,
                unlabeled.row,
                scale=self.scale(context),
                anchor=student,
            ),
        ]
