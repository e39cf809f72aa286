"""A tiny frozen encoder, and modules that learn on its features."""

from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from modules import digits, ssl_module
from torch import nn

from ssl_weighting import encoding
from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.augment import RandAugment
from ssl_weighting.backbones.module_backbone import ModuleBackbone
from ssl_weighting.encoder import FeatureOptions


class Small(nn.Module):
    """A network of its user's, that counts the examples it sees and may be stopped."""

    seen = 0
    stop_after: int | None = None

    def __init__(self, width: int = 6, channels: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        if Small.stop_after is not None and Small.seen >= Small.stop_after:
            raise KeyboardInterrupt
        Small.seen += len(x)
        return self.fc(self.body(x).mean((2, 3)))


def frozen(seed=0, **options):
    torch.manual_seed(seed)
    return ModuleBackbone(Small(**options), head="fc", frozen=True)


def module(cache, algorithm=None, backbone=None, **features):
    return ssl_module(
        10,
        backbone or frozen(),
        algorithm or PseudoLabel(),
        features=FeatureOptions(cache=Path(cache), **features),
        weighting_inner_steps=1,
        weighting_warmup_steps=0,
        weighting_update_masked=True,
    )


def fitted(
    cache, algorithm=None, data=None, steps=2, backbone=None, checkpoint=None, callbacks=(), **features
):
    seed_everything(0, verbose=False)
    made = module(cache, algorithm, backbone, **features)
    data = data or digits()
    bare_trainer(steps, "cpu", *callbacks).fit(made, data, ckpt_path=checkpoint)
    return made, data


def set_up(cache, algorithm=None, data=None, backbone=None, **features):
    """A module and its data after ``setup``, untrained."""
    seed_everything(0, verbose=False)
    made, data = module(cache, algorithm, backbone, **features), data or digits()
    data.setup("fit")
    encoding.encode(made.encoder, made.views_of(data), made.features, torch.device("cpu"), lambda: None)
    return made, data


def table(data, part="unlabeled"):
    return data.sets[part].features.views


def kept_in(cache):
    return sorted(path.name for path in Path(cache).glob("features-*"))


def contents(cache):
    return {path.parent.name: path.read_bytes() for path in Path(cache).glob("features-*/values")}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


STRONG = partial(FixMatch, strong=[RandAugment()])
