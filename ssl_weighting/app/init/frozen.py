"""``init``'s recipe where a pretrained encoder is at hand: its features once, every label trains."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from ssl_weighting.algorithms.supervised import Supervised
from ssl_weighting.app.baseline import in_order, standardised
from ssl_weighting.app.heads import UNKNOWNS
from ssl_weighting.app.init.choice import Choice, backbone_part, data_part
from ssl_weighting.app.init.encoders import Found
from ssl_weighting.app.init.timing import minutes
from ssl_weighting.data.module import SSLData
from ssl_weighting.encoder import Encoder
from ssl_weighting.probe import fit_probe
from ssl_weighting.views import Views

LABELED, UNLABELED, FEWEST = 64, 448, 64
"""Largest batches; fewest unlabelled examples of one."""
STEPS = 300


def batch_sizes(classes: int, labeled: int, pool: int) -> tuple[int, int, bool]:
    """Labelled and unlabelled examples of a batch, and whether so few that their weights can be learned.

    Args:
        classes: C. The last layer's Hessian lies in the span of a batch's examples, for each class.
        labeled: Labelled examples there are.
        pool: Unlabelled ones.
    """
    first = min(labeled, LABELED)
    second = min(pool, UNLABELED, max(FEWEST, UNKNOWNS // classes - first))
    return first, second, classes * (first + second) <= UNKNOWNS


def use_frozen(choice: Choice, found: Found, module: SSLData, device: str) -> None:
    """Settle the rest of a recipe on frozen features; say how long they take, and what the labels alone are good for.

    Args:
        choice: The recipe.
        found: The encoder.
        module: The data set, split.
        device: ``cpu`` or ``cuda``.
    """
    choice.backbone, choice.steps = found.written, STEPS
    sizes = [len(module.sets[part]) for part in ("labeled", "unlabeled")]
    first, second, _ = batch_sizes(module.num_classes, *sizes)
    choice.data |= {"labeled_batch_size": first, "unlabeled_batch_size": second}
    encoder = Encoder(found.backbone).to(device)
    views = Views(module, Supervised(), nn.ModuleList(), module.num_classes, encoder=encoder)
    started = time.perf_counter()
    features = in_order(views, "labeled", torch.device(device), lambda x: x)
    pace = sizes[0] / (time.perf_counter() - started)
    count = sizes[1] + (len(module.sets["test"]) if module.has_test else 0)
    choice.note("encoding", f"{count:,}", f"examples, once, {minutes(count / pace)} on this {device.upper()}")
    probe = fit_probe(standardised(features), module.sets["labeled"].labels.numpy())
    if probe.held_out is None:
        choice.note("labels only", "?", "a class has a single label: nothing to cross-validate with")
    else:
        why = "cross-validated error of a linear probe on these features, which the pool has to beat"
        choice.note("labels only", f"{100 * probe.error:.1f} %", why)


def frozen_recipe(choice: Choice, module: SSLData, split: Path, sizes: dict[str, int]) -> str:
    """The text of the recipe."""
    arguments = choice.data | {"split": str(split)}
    *_, learns = batch_sizes(module.num_classes, sizes["labeled"], sizes["unlabeled"])
    kind = "per_example" if learns else "fixed"
    why = (
        "fixed: all count alike, for comparison"
        if learns
        else "so many classes are too many to learn weights for"
    )
    name = {"images": "Images", "text": "Text"}[module.name]
    return f"""\
# {name} of {module.num_classes} classes, {sizes["labeled"]} labels, all of which train; features of a frozen encoder
# Written by `ssl-weighting init`. Start it with `ssl-weighting fit --config` and this file.
{data_part(name, arguments, sizes)}
model:
{backbone_part(choice)}
  features: {{views: 0}} # examples as they are; 2 and more for methods that compare views, such as UDA
  algorithm:
    class_path: Ensemble # pseudo-labels of the pool's shape and of a probe, where they agree; see docs/methods.md
  influence:
    class_path: ExactLastLayer
    init_args: {{damping: reference_code, max_dense: {UNKNOWNS}}}
  theta:
    optimizer:
      class_path: torch.optim.SGD
      init_args: {{lr: 0.01, momentum: 0.9, nesterov: true, weight_decay: 0.1}}
    schedule: constant
    decay_all: true
    ema_decay: 0.9
  # The weights λ are learned on the labelled examples, each left out in turn: num_validation is 0.
  weighting:
    kind: {kind} # {why}
    inner_steps: {STEPS // 10}
    warmup_steps: {STEPS // 3}
    bounds: [0, 2] # as in the authors' code
trainer:
  max_steps: {STEPS}
  val_check_interval: {STEPS // 3}
baseline: choose # the labels-only model is handed over where the pool does not help
"""
