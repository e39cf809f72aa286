import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from ssl_weighting.data import Batch, Digits
from ssl_weighting.errors import UserError


def test_images_are_the_ones_of_scikit_learn_stretched():
    from sklearn.datasets import load_digits

    data = Digits()
    train, test = data.load(True), data.load(False)
    assert train.inputs.shape == (1297, 1, 8, 8)
    assert test.inputs.shape == (500, 1, 8, 8)
    assert train.inputs.dtype == torch.uint8
    assert (train.inputs.max(), train.inputs.min()) == (255, 0)
    images, labels = load_digits(return_X_y=True)
    ours = torch.cat([train.inputs, test.inputs]).flatten(1).double() * 16 / 255
    our_labels = torch.cat([train.labels, test.labels]).tolist()
    rows = {(*image, c) for image, c in zip(ours.round().tolist(), our_labels, strict=True)}
    assert rows == {(*image, c) for image, c in zip(images.tolist(), labels.tolist(), strict=True)}


def test_test_set_is_stratified_and_always_the_same(monkeypatch):
    test = Digits(split_seed=0).load(False)
    assert all(48 <= count <= 51 for count in test.labels.bincount().tolist())
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert Digits(split_seed=9).load(False).checksum() == test.checksum()
    # Another value means that results no longer compare with older ones.
    assert test.checksum().startswith("f6136f134c461817")


def test_sizes_of_the_lists():
    data = Digits(split_seed=0)
    data.setup()
    assert {part: len(s) for part, s in data.sets.items()} == {
        "labeled": 50,
        "validation": 200,
        "unlabeled": 1097,
        "test": 500,
    }


def test_weak_view_does_not_mirror():
    data = Digits()
    bar = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    bar[..., 1] = 255
    seen = data.view(bar, ("weak",))
    assert set(seen.unique().tolist()) == {-1.0, 1.0}
    assert (seen[..., 4:] == -1).all()
    assert not torch.equal(seen, data.view(bar, ()))


def test_impossible_test_size_is_refused():
    with pytest.raises(UserError, match=r"data\.num_test=1790: must lie between 10 and 1787"):
        Digits(num_test=1790)


class Plain(LightningModule):
    """What anybody writes in ten lines: no SSLModule, automatic optimisation."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        data, known = self.trainer.datamodule, batch["labeled"]
        assert isinstance(batch["unlabeled"], Batch)
        return nn.functional.cross_entropy(self.net(data.view(known.inputs, ("weak",))), known.labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def plain_trainer(folder, **options):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0, default_root_dir=folder,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize(("options", "steps"), [({"max_steps": 7}, 7), ({"max_epochs": 2}, 2 * 4)])
def test_any_lightning_trainer_trains_on_it(options, steps, tmp_path):
    data = Digits(num_labeled=20, num_validation=20, unlabeled_batch_size=320, labeled_batch_size=10)
    trainer, module = plain_trainer(tmp_path, **options), Plain()
    before = module.net[1].weight.clone()
    trainer.fit(module, data)
    assert trainer.global_step == steps
    assert not torch.equal(module.net[1].weight, before)


def test_without_a_trainer_an_epoch_is_a_pass_and_the_next_goes_on():
    data = Digits(
        num_labeled=20, num_validation=20, unlabeled_batch_size=320, labeled_batch_size=10, split_seed=0
    )
    data.setup("fit")
    loader = data.train_dataloader()
    first, second = ([batch["unlabeled"].row for batch, _, _ in loader] for _ in range(2))
    assert len(first) == len(second) == -(-data.num_unlabeled // 320)
    whole = torch.cat([*first, *second])[: 2 * data.num_unlabeled]
    assert (whole.bincount(minlength=data.num_unlabeled) == 2).all()
