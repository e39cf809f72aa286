"""What a θ step must not do: wait for the device. Seen on a CPU, where what waits can be counted."""

import sys
from collections import Counter
from unittest import mock

import pytest
import torch
from modules import digits
from torch.utils._python_dispatch import TorchDispatchMode

from lab.speed.floor import METHODS
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.augment import RandAugment
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.guards import FiniteGuard
from ssl_weighting.module import SSLModule
from ssl_weighting.weighting.table import Table

# A number read into Python, and operations whose result's size depends on values.
TOLIST = torch.Tensor.tolist
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero", "allclose"}


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        indices = arguments[1] if name in ("index", "index_put_") else ()
        if name in WAITS or any(i is not None and i.dtype == torch.bool for i in indices):
            self.waits[name] += 1
        return function(*arguments, **(options or {}))

    def tolist(self, tensor):
        # The counts of a policy are read where they were drawn: see test_policies_are_drawn_where_the_program_runs.
        if sys._getframe(2).f_globals["__name__"] != "ssl_weighting.augment.ops":
            self.waits["tolist"] += 1
        return TOLIST(tensor)


class Watched(SSLModule):
    def training_step(self, batch, batch_idx):
        with Counting() as counting, mock.patch.object(torch.Tensor, "tolist", lambda t: counting.tolist(t)):
            super().training_step(batch, batch_idx)
        if not self.weighting.due(self.global_step):
            self.counted.append(counting.waits)


def train(method, steps, log_every):
    model = Watched(10, WideResNet(10, 1, in_channels=1), METHODS[method].make())
    model.counted = []
    bare_trainer(steps, "cpu", log_every_n_steps=log_every).fit(
        model, digits(labeled_batch_size=4, unlabeled_batch_size=4, validation_batch_size=10)
    )
    return model.counted


@pytest.fixture
def _as_on_an_accelerator(monkeypatch):
    """Without the checks of values that are made on a CPU alone: two of ours, and torch's own in ``one_hot``."""
    monkeypatch.setattr(FiniteGuard, "check", lambda self: None)
    monkeypatch.setattr(Table, "_check", lambda self, index: None)
    monkeypatch.setattr(
        torch.nn.functional, "one_hot", lambda labels, n: (labels[..., None] == torch.arange(n)).long()
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("_as_on_an_accelerator")
def test_no_theta_step_waits_for_the_device(method):
    assert train(method, 2, 1000) == [Counter()] * 2


def test_the_counter_counts():
    with Counting() as counting:
        x = torch.tensor([1.0, 0.0])
        float(x.sum())
        x[x > 0]
    assert counting.waits == {"_local_scalar_dense": 1, "index": 1}


@pytest.mark.usefixtures("_as_on_an_accelerator")
def test_only_a_step_that_logs_waits():
    first, second = train("fixmatch", 2, 2)
    assert not first
    assert second == {"tolist": 1}


def test_policies_are_drawn_where_the_program_runs():
    choice, magnitude = RandAugment().to("meta").draw(4)
    assert choice.device.type == magnitude.device.type == "cpu"
