"""``data.num_validation: 0``: no label is kept aside, and the weights are learned on those that train."""

import warnings

import pytest
import torch
from modules import ssl_module

from ssl_weighting.algorithms.mixmatch import MixMatch
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.data.digits import Digits
from ssl_weighting.errors import UserError
from ssl_weighting.influence.exact import ExactLastLayer
from ssl_weighting.influence.neumann import Neumann


def trained(algorithm, influence, batch=30):
    data = Digits(
        num_labeled=30, num_validation=0, labeled_batch_size=batch, unlabeled_batch_size=40, split_seed=0
    )
    module = ssl_module(
        10, SmallConvNet(1, (4, 8)), algorithm, influence,
        weighting_inner_steps=2, weighting_warmup_steps=0,
    )  # fmt: skip
    bare_trainer(4, "cpu").fit(module, data)
    return module, data


def test_every_label_trains_and_weights_move():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="data.num_validation=0|data.labeled_batch_size")
        module, data = trained(UDA(threshold=0.0), ExactLastLayer(damping=1.0))
    assert [len(data.sets[part]) for part in ("labeled", "validation")] == [30, 0]
    assert module.weighting.known(torch.arange(data.num_unlabeled))[1].updates.sum() == 2 * 40


def test_a_method_that_mixes_labelled_examples_is_refused():
    with pytest.raises(
        UserError, match=r"data\.num_validation=0: MixMatch does not compare labelled examples"
    ):
        trained(MixMatch(), ExactLastLayer(damping=1.0))


def test_copies_in_a_batch_that_vouch_for_each_other_are_said():
    with pytest.warns(UserWarning, match=r"data\.labeled_batch_size=31: more than the 30 labels"):
        trained(UDA(threshold=0.0), ExactLastLayer(damping=1.0), batch=31)


def test_an_influence_that_leaves_nothing_out_says_so():
    with pytest.warns(
        UserWarning, match=r"data\.num_validation=0: Neumann judges labelled examples as they were"
    ):
        trained(UDA(threshold=0.0), Neumann())
