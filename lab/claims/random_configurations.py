"""Try random configurations: each must train two steps or be refused, before training, in one line.

python -m lab.claims.random_configurations [--count 1000] [--seed 0] [--json FILE]

Values are drawn from algorithms, influences, weighting, optimisers, batch sizes, data sets and networks that fit the data
or do not, sensible and out of range. ``refused`` counts one-line errors before the first θ step, ``stopped`` one-line
errors after it (a solver that diverges, a loss that is not finite), ``crashed`` everything else.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything

from lab.grouped import ssl_module
from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.flexmatch import FlexMatch
from ssl_weighting.algorithms.freematch import FreeMatch
from ssl_weighting.algorithms.mean_teacher import MeanTeacher
from ssl_weighting.algorithms.mixmatch import MixMatch
from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.algorithms.remixmatch import ReMixMatch
from ssl_weighting.algorithms.softmatch import SoftMatch
from ssl_weighting.algorithms.supervised import Supervised
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.algorithms.vat import VAT
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.augment import CTAugment
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.backbones.mlp import MLP
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.data.digits import Digits
from ssl_weighting.data.synthetic import Synthetic
from ssl_weighting.errors import UserError
from ssl_weighting.influence.conjugate_gradient import ConjugateGradient
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.influence.identity import Identity
from ssl_weighting.influence.larsen import Larsen
from ssl_weighting.influence.lissa import LiSSA
from ssl_weighting.influence.neumann import Neumann
from ssl_weighting.influence.relative import RelativeInfluence
from ssl_weighting.influence.truncated_unroll import TruncatedUnroll
from ssl_weighting.precision import check_precision

Choose = Callable[[Sequence[Any]], Any]
Options = dict[str, Sequence[Any]]
NAN, INFINITY = float("nan"), float("inf")

# The first value of each is one that trains; a draw leaves most options as they are.
DATA: Options = {
    "num_labeled": [20, 10, 2, 1, 100, 10**6, 0, -1],
    "num_validation": [30, 1, 300, 10**6, 0],
    "labeled_batch_size": [8, 1, 2, 33, 0],
    "unlabeled_batch_size": [16, 1, 3, 40, -5],
    "validation_batch_size": [30, 1, 7, 0],
    "evaluation_batch_size": [500, 1, 0],
    "known_classes": [None, [0, 1], [1, 0], [0], [0, 0], [0, 99], [0, 1, 2]],
    "pool_classes": [None, [3, 4], [0], [], [77]],
    "foreign_fraction": [None, 0.3, 0.0, 1.0, -0.5, NAN],
    "num_unlabeled": [None, 60, 20, 1, 0, 10**6],
    "evaluate_test": [False, True],
    "num_workers": [0, -1],
}
POINTS: Options = {"shape": ["moons", "circles", "linear", "spiral"], "noise": [None, 0.0, -1.0, INFINITY]}
MODEL: Options = {
    "weighting_kind": ["per_example", "evidence", "single", "fixed"],
    "weighting_inner_steps": [1, 2, 100, 0],
    "weighting_warmup_steps": [0, 1, 10**6, -1],
    "weighting_lr": [0.01, 10.0, 0.0, -1.0, NAN],
    "weighting_optimizer": ["masked_adam", "sgd", "adam"],
    "weighting_bias_correction": ["global", "per_example"],
    "weighting_init": [1.0, 0.0, 5.0, -1.0, NAN, INFINITY],
    "weighting_bounds": [(0.0, INFINITY), (0.0, 2.0), (2.0, 0.0), (-1.0, 1.0), (NAN, 1.0)],
    "weighting_storage": ["memory", "sharded", "disk"],
    "nonfinite": ["stop", "skip"],
    "weighting_update_masked": [False, True],
    "weighting_batchnorm": ["eval", "train"],
    "theta_decay_all": [False, True],
    "theta_schedule": ["cosine_7_16", "linear", "constant"],
    "theta_lr_warmup_steps": [0, 1, 10**6, -1],
    "theta_clip_norm": [None, 1.0, 0.0, -1.0, NAN],
    "theta_accumulate": [1, 3, 0],
    "theta_ema_decay": [0.999, 0.0, 1.0, -0.1, NAN],
    "symmetric_binary_head": [True, False],
    "channels_last": [True, False],
    "target_pass": ["joint", "apart"],
}
TRAINER: Options = {"precision": ["32-true", "bf16-mixed", "64-true", "16-mixed"]}
FRACTION, POSITIVE, COEFFICIENT = (
    [0.5, 0.0, 1.0, 1.5, NAN],
    [0.5, 1e-8, 0.0, -1.0, NAN],
    [1.0, 0.0, -1.0, INFINITY],
)
ALGORITHMS: list[tuple[Any, Options]] = [
    (Supervised, {}),
    (PseudoLabel, {"threshold": FRACTION, "coefficient": COEFFICIENT, "ramp": FRACTION}),
    (
        UDA,
        {
            "threshold": [None, *FRACTION],
            "temperature": POSITIVE,
            "annealing": [None, "linear", "exp", "log", "cos"],
        },
    ),
    (UDA, {"strong": [[]], "threshold": [None, *FRACTION], "coefficient": COEFFICIENT}),
    (FixMatch, {"threshold": FRACTION, "coefficient": COEFFICIENT}),
    (lambda: FixMatch(strong=[CTAugment()]), {}),
    (FlexMatch, {"threshold": FRACTION}),
    (FreeMatch, {"momentum": FRACTION, "fairness_coefficient": COEFFICIENT, "max_threshold": FRACTION}),
    (SoftMatch, {"momentum": FRACTION, "num_sigma": POSITIVE}),
    (MeanTeacher, {"coefficient": COEFFICIENT, "ramp": FRACTION}),
    (MixMatch, {"temperature": POSITIVE, "alpha": POSITIVE, "num_views": [2, 1, 0]}),
    (ReMixMatch, {"num_strong": [1, 2, 0], "alpha": POSITIVE, "temperature": POSITIVE}),
    (VAT, {"epsilon": POSITIVE, "xi": POSITIVE, "iterations": [1, 2, 0], "coefficient": COEFFICIENT}),
]
DAMPING = [0.1, 5e-4, 0.0, -1.0, NAN]
SCOPED: Options = {
    "scope": ["last_layer", "last_block", "all", "heads", "nothing", "("],
    "engine": ["auto", "jvp", "activation", "vmap", "serial", "magic"],
    "chunk_size": [0, 5, -1],
}
CURVED: Options = SCOPED | {"damping": DAMPING, "curvature": ["ggn", "hessian", "fisher"]}
INFLUENCES: list[tuple[Any, Options]] = [
    (ExactLastLayer, {"damping": ["paper", *DAMPING], "bias": [True, False], "max_dense": [5000, 1, -1]}),
    (RelativeInfluence, {"damping": DAMPING, "neighbours": [4, 1, 0], "quantile": [0.9, 0.0, 1.0, NAN]}),
    (Identity, SCOPED),
    (Neumann, CURVED | {"terms": [3, 0], "step_size": [None, 0.1, 1e6, -1.0]}),
    (ConjugateGradient, CURVED | {"max_iterations": [5, 0], "tolerance": [1e-4, 0.0]}),
    (LiSSA, CURVED | {"depth": [3, 0], "batch_size": [8, 10**6, 0], "scale": [None, 1e-6, 10.0, 0.0]}),
    (Larsen, SCOPED | {"outer_product": ["batch", "fisher", "none"], "damping": DAMPING}),
    (TruncatedUnroll, SCOPED | {"steps": [2, 0], "curvature": ["hessian", "ggn", "none"]}),
]
BACKBONES: list[tuple[Any, Options]] = [
    (SmallConvNet, {"in_channels": [1, 3, 0], "channels": [(4, 4), (4,), ()]}),
    (MLP, {"in_features": [2, 64], "hidden": [(8, 8), (), (0,)]}),
    (partial(WideResNet, depth=10, width=1), {"in_channels": [1, 3]}),
]
OPTIMIZERS: list[tuple[Any, Options]] = [
    (
        torch.optim.SGD,
        {"lr": [0.03, 0.0, -1.0, 1e30, NAN], "momentum": [0.9, 0.0, -1.0]},
    ),
    (torch.optim.AdamW, {"lr": [1e-3, -1.0, NAN], "betas": [(0.9, 0.999), (0.9, 1.0)]}),
]


def draw(options: Options, choose: Choose, changed: Sequence[bool] = (False, False, True)) -> dict[str, Any]:
    """Some of the options, one value each."""
    return {name: choose(values) for name, values in options.items() if choose(changed)}


def draw_configuration(choose: Choose) -> dict[str, Any]:
    """A configuration: classes, and their arguments."""
    points = choose([True, False, False])
    plain = [
        a
        for a in ALGORITHMS
        if a[0] in (Supervised, PseudoLabel, MeanTeacher, MixMatch, VAT) or "strong" in a[1]
    ]
    networks = [BACKBONES[1]] if points else [BACKBONES[0], BACKBONES[2]]
    few = (False,) * 39 + (True,)  # each of many options, so that most configurations have one flaw or none
    parts: dict[str, tuple[Any, Options]] = {
        "data": (Synthetic, DATA | POINTS) if points else (Digits, DATA),
        "backbone": choose([*networks * 5, *BACKBONES]),
        "algorithm": choose([*(plain * 5 if points else ()), *ALGORITHMS]),
        "influence": choose(INFLUENCES),
        "optimizer": choose(OPTIMIZERS),
    }
    chosen = {name: (cls, draw(options, choose, few)) for name, (cls, options) in parts.items()}
    small = {"num_labeled": 20, "num_validation": 30, "labeled_batch_size": 8, "unlabeled_batch_size": 16}
    cls, options = chosen["data"]
    chosen["data"] = (cls, small | options)
    cls, options = chosen["backbone"]
    first = {name: values[0] for name, values in parts["backbone"][1].items()}
    chosen["backbone"] = (cls, first | options)
    chosen["model"] = (ssl_module, {"weighting_inner_steps": 1} | draw(MODEL, choose, few))
    chosen["trainer"] = (bare_trainer, draw(TRAINER, choose, few))
    return chosen


class _Watch(Callback):
    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


def attempt(configuration: dict[str, Any], folder: Path) -> tuple[str, str]:
    """Train it for two steps.

    Returns:
        ``trained``, ``refused``, ``stopped`` or ``crashed``, and what was said.
    """

    def made(name: str, **more: Any) -> Any:
        cls, options = configuration[name]
        return cls(**(options | more))

    watch = _Watch()
    try:
        seed_everything(0, verbose=False)
        cls, options = configuration["optimizer"]
        data = made("data")
        check_precision(configuration["trainer"][1].get("precision"))
        data.setup("fit")
        model = made(
            "model",
            num_classes=data.num_classes,
            backbone=made("backbone"),
            algorithm=made("algorithm"),
            influence=made("influence"),
            theta_optimizer=partial(cls, **options),
        )
        trainer = made(
            "trainer",
            steps=2,
            device="cpu",
            callbacks=[watch],
            default_root_dir=tempfile.mkdtemp(dir=folder),
            limit_val_batches=None,
            val_check_interval=2,
            num_sanity_val_steps=0,
        )
        trainer.fit(model, data)
    except UserError as error:
        said = str(error)
        return ("refused" if watch.steps == 0 else "stopped") if "\n" not in said else "crashed", said
    except Exception:
        return "crashed", traceback.format_exc()
    return ("trained", "") if trainer.global_step == 2 else ("crashed", f"{trainer.global_step} steps")


def quiet() -> None:
    """No remarks of Lightning's."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> int:
    """Try them; returns 1 if any crashed."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true", help="say what was said about each")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.count):
            configuration = draw_configuration(random.Random(f"{options.seed} {number}").choice)
            outcome, said = attempt(configuration, Path(folder))
            outcomes[outcome] += 1
            if options.verbose:
                print(number, outcome, said[:150])
            if outcome == "crashed":
                print(f"{number}: {configuration}\n{said}", flush=True)
    result = {
        "tried": options.count,
        **{name: outcomes[name] for name in ("trained", "refused", "stopped", "crashed")},
        "seed": options.seed,
        "seconds": round(time.monotonic() - began),
    }
    print(result)
    if options.json:
        options.json.write_text(json.dumps(result) + "\n")
    return int(outcomes["crashed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
