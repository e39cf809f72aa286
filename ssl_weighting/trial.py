"""Views, network and influence are tried on a few examples before training, so that a misfit costs nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_weighting.algorithms.base import Algorithm, Context
from ssl_weighting.backbones.base import Classifier
from ssl_weighting.data.module import SSLData
from ssl_weighting.distributed import is_first_process
from ssl_weighting.errors import NonFiniteError, UnsolvedError, UserError
from ssl_weighting.guards import check_labels_can_judge, warn_of_twins, warn_without_weight_step
from ssl_weighting.influence.base import Influence, ThetaStep
from ssl_weighting.modes import evaluation_mode
from ssl_weighting.protocols import Model
from ssl_weighting.terms import LossTerm, Objective
from ssl_weighting.views import Views
from ssl_weighting.weighting import Weighting

FEW = 8
"""Examples of a kind that views, network and influence are tried on; twice as many of validation."""

MISFITS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)
"""What code raises that meets inputs, or a network, that it was not made for."""


@dataclass(frozen=True)
class Trial:
    """What is tried together.

    Attributes:
        network: The classifier.
        algorithm: The method.
        views: Shows it examples.
        weighting: Λ, and the influence.
        context: Where training stands.
        keeps: All modules whose buffers are to stay as they are.
        compiled: Whether the network may be compiled.
    """

    network: Classifier
    algorithm: Algorithm
    views: Views
    weighting: Weighting
    context: Context
    keeps: tuple[nn.Module, ...]
    compiled: bool

    @torch.no_grad()
    def run(self, precision: AbstractContextManager[Any]) -> None:
        """Try all of it, in the precision of a training step.

        Raises:
            UserError: In one line, naming the option that does not fit.
        """
        data, options = self.views.data, self.weighting.options
        if self.weighting.learns and is_first_process():
            warn_without_weight_step(options, self.context.total_steps)
        method = f"model.algorithm={type(self.algorithm).__name__}"
        network = f"model.backbone={type(self.network.backbone).__name__}"
        influence = f"model.influence={type(self.weighting.influence).__name__}: it"
        labeled = self._few("labeled", min(data.labeled_batch_size, FEW))
        examples = f"the data's examples, of shape {shapes(labeled.inputs)}"
        mode = evaluation_mode(self.network, options.batchnorm, self.compiled)
        with isolate_rng(), unchanged_buffers(*self.keeps), mode, precision:
            with fits(f"{method}: its views", examples):
                unlabeled = self._few("unlabeled", min(data.unlabeled_batch_size, FEW))
                batches = self.views.of({"labeled": labeled, "unlabeled": unlabeled})
            with fits(f"{network}: it", examples):
                self.network(batches[0].inputs)
            if not self.weighting.learns:
                return
            model = cast(Model, self.network)
            with fits(f"{method}: its loss", examples):
                terms = self.algorithm.loss_terms(model, *batches, self.context)
            few = None
            if len(data.sets["validation"]):
                few = self._few("validation", min(data.validation_batch_size, 2 * FEW))
            else:
                check_labels_can_judge(self.algorithm, self.weighting.influence, terms, batches[0].target)
                warn_of_twins(self.weighting.influence, data.labeled_batch_size, len(data.sets["labeled"]))
            validation = self.views.validation_term(model, few, terms)
            weights = [None if t.row is None else torch.full_like(t.mask, options.init) for t in terms]
            autocast = torch.autocast(validation.logits.device.type, enabled=False)
            with autocast, fits(influence, network):
                try_influence(self.weighting.influence, self.network, Objective(terms, weights), validation)

    def _few(self, part: str, number: int) -> Any:
        """Examples from all over a list of the split, on the network's device."""
        data: SSLData = self.views.data
        examples = data.sets[part]
        few = examples.__getitems__([i * len(examples) // number for i in range(number)])
        device = next(self.network.parameters()).device
        return pytree.tree_map_only(Tensor, lambda x: x.to(device), few)


@contextmanager
def fits(option: str, what: str) -> Iterator[None]:
    """Say in one line that what an option names cannot do what it is tried on.

    Args:
        option: The option and its value, and the part that is tried.
        what: What it is tried on.

    Raises:
        UserError: For one of :data:`MISFITS`; a ``UserError`` that is raised inside goes through as it is.
    """
    try:
        yield
    except MISFITS as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{option} cannot take {what} ({said})") from error


@contextmanager
def unchanged_buffers(*modules: nn.Module) -> Iterator[None]:
    """Put the buffers of some modules back afterwards."""
    before = [{name: buffer.clone() for name, buffer in module.named_buffers()} for module in modules]
    try:
        yield
    finally:
        for module, kept in zip(modules, before, strict=True):
            for name, buffer in module.named_buffers():
                buffer.copy_(kept[name])


def try_influence(
    influence: Influence, network: Classifier, objective: Objective, validation: LossTerm
) -> None:
    """Ask a copy of an influence once, for what is wrong with it whatever the numbers are.

    A Hessian that cannot be inverted is not: a few examples at an untrained θ may have one, and those of a Λ step not.

    Raises:
        UserError: If it does not fit the network, or does not answer for every example.
    """
    name, influence = type(influence).__name__, copy.deepcopy(influence)
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    for _ in range(min(influence.records_steps, 2)):  # of two, one is walked back through
        influence.record_step(ThetaStep(parameters, objective, lr=0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about these few examples
        try:
            answers = influence(network, objective, validation)
        except (NonFiniteError, UnsolvedError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            return
    given = [tuple(answer.shape) for answer in answers]
    wanted = [tuple(term.mask.shape) for term in objective.terms if term.row is not None]
    if given != wanted:
        raise UserError(f"model.influence={name}: must give influences of shapes {wanted}, and gives {given}")


def shapes(inputs: Any) -> Any:
    """The shape of one example of a batch, or of each of its parts."""
    return pytree.tree_map(lambda x: tuple(x.shape[1:]), inputs)
