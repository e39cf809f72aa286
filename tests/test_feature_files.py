"""Features of a frozen encoder on the disk: files, and the keys that they are found by."""

import copy
import errno
import os
from functools import partial

import pytest
import torch
from frozen import Small, contents, frozen, kept_in, one_line, set_up
from lightning.pytorch import seed_everything
from made_up import paint
from modules import ssl_module
from torch import nn
from torch.utils.data import Dataset

from ssl_weighting import encoding
from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.augment import RandAugment
from ssl_weighting.backbones.transformer import Transformer
from ssl_weighting.data.images import Images
from ssl_weighting.data.tensors import TensorData
from ssl_weighting.encoder import PLAIN, FeatureOptions, fingerprint, view_name
from ssl_weighting.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def counted():
    Small.seen, Small.stop_after = 0, None


# ---- files ----


def test_a_lost_file_of_values_is_not_believed(tmp_path):
    set_up(tmp_path, views=0)
    whole = contents(tmp_path)
    (folder,) = tmp_path.glob("features-*")
    (folder / "values").unlink()
    set_up(tmp_path, views=0)
    assert contents(tmp_path) == whole


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        UserError, match=rf"^model\.features\.cache={tmp_path}: cannot be written \(No space"
    ) as error:
        set_up(tmp_path, views=0)
    assert "--model.features.cache FOLDER" in one_line(error)


def test_a_cache_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^model\.features\.cache=.*file: cannot be written") as error:
        set_up(tmp_path / "file")
    one_line(error)


# ---- keys ----


def painted(root, size=12):
    return Images(
        labeled=root / "labelled", unlabeled=root / "pool", size=size, num_labeled=4, num_validation=4,
        labeled_batch_size=4, unlabeled_batch_size=4,
    )  # fmt: skip


def keys_of(cache, data, backbone):
    seed_everything(0, verbose=False)
    made = ssl_module(2, backbone, PseudoLabel(), features=FeatureOptions(views=0, cache=cache))
    data.setup("fit")
    encoding.encode(made.encoder, made.views_of(data), made.features, torch.device("cpu"), lambda: None)
    return set(kept_in(cache))


def test_a_changed_file_gets_another_key(folders, tmp_path):
    cache = tmp_path / "cache"
    before = keys_of(cache, painted(folders), frozen(channels=3))
    assert keys_of(cache, painted(folders), frozen(channels=3)) == before
    paint(folders / "pool" / "3.png", 77, (30, 30))
    assert len(keys_of(cache, painted(folders), frozen(channels=3))) == len(before) + 1
    assert len(keys_of(cache, painted(folders, 14), frozen(channels=3))) == len(before) + 2


class Items(Dataset):
    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, row):
        return (self.inputs[row],)


def test_an_item_of_a_data_set_that_changed_gets_another_key(tmp_path):
    inputs = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 2
    labels[30:] = -1
    before = keys_of(tmp_path, TensorData(Items(inputs), labels, num_validation=6), frozen())
    assert keys_of(tmp_path, TensorData(Items(inputs.clone()), labels, num_validation=6), frozen()) == before
    inputs[41] += 0.1
    assert len(keys_of(tmp_path, TensorData(Items(inputs), labels, num_validation=6), frozen())) == 2


class Wider(Small):
    """The same layers, another way through them."""

    def forward(self, x):
        return super().forward(2 * x)


def changed(how):
    backbone = frozen()
    module = backbone.module
    if how == "a weight":
        with torch.no_grad():
            module.body[0].weight[0, 0, 0, 0] += 1e-3
    elif how == "a statistic":
        module.body[1].running_mean[2] += 1
    elif how == "an option of a layer":
        module.body[1].eps = 1e-2
    elif how == "a layer without weights":
        module.body[2] = nn.Tanh()
    elif how == "the code of its user":
        module.__class__ = Wider
    return backbone


@pytest.mark.parametrize(
    "how",
    ["a weight", "a statistic", "an option of a layer", "a layer without weights", "the code of its user"],
)
def test_a_changed_encoder_is_another(how):
    assert fingerprint(frozen()) == fingerprint(copy.deepcopy(frozen()))
    assert fingerprint(changed(how)) != fingerprint(frozen())


def test_a_transformers_options_and_not_its_place_make_the_key(tiny_bert, bert_copy):
    one = fingerprint(Transformer(str(tiny_bert), pooling="mean", frozen=True))
    assert fingerprint(Transformer(str(bert_copy), pooling="mean", frozen=True)) == one
    config = bert_copy / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    assert fingerprint(Transformer(str(bert_copy), pooling="mean", frozen=True)) != one


def test_a_pooler_that_nobody_trained_is_refused(bert_copy):
    import transformers

    config = transformers.DistilBertConfig(vocab_size=120, dim=8, hidden_dim=12, n_layers=2, n_heads=2)
    transformers.DistilBertModel(config).save_pretrained(bert_copy)
    with pytest.raises(UserError, match=r"^model\.backbone\.pooling=bert: .* brings no pooler") as error:
        Transformer(str(bert_copy), frozen=True)
    assert "--model.backbone.pooling mean" in one_line(error)
    assert Transformer(str(bert_copy), pooling="mean", frozen=True).feature_dim == 8


def test_names_of_views_tell_functions_and_nested_steps_apart():
    def one(x):
        return x

    def other(x):
        return x + 1

    assert view_name((one,)) != view_name((other,))
    assert view_name((partial(one, 1),)) != view_name((partial(other, 1),))
    assert view_name((partial(one, 1),)) != view_name((partial(one, 2),))
    steps = [nn.Sequential(RandAugment(), nn.Dropout(p)) for p in (0.1, 0.2)]
    assert view_name(steps[:1]) != view_name(steps[1:])
    assert view_name((copy.deepcopy(steps[0]),)) == view_name(steps[:1])
    assert view_name(()) == PLAIN
