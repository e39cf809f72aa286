"""Every recipe in the folder parses and trains two steps, on small data in the sets' own formats."""

import pickle

import numpy as np
import pytest
import torch
from scipy.io import savemat

from ssl_weighting.cli import main
from ssl_weighting.recipes import recipe_names

SMALL = [
    *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--model.inner_steps", "1"),
    *("--model.warmup_steps", "0", "--model.update_masked", "true", "--data.labeled_batch_size", "4"),
    *("--data.unlabeled_batch_size", "8", "--data.validation_batch_size", "8"),
]
IMAGES = [
    *("--data.num_labeled", "20", "--data.num_validation", "20", "--data.download", "false"),
    *("--data.verify_checksum", "false", "--model.backbone.depth", "10", "--model.backbone.width", "1"),
]


@pytest.fixture(scope="module")
def image_sets(tmp_path_factory):
    """CIFAR-10 and SVHN with a hundred images a file."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    (root / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = generator.integers(0, 256, (100, 3072), dtype=np.uint8)
        batch = {"batch_label": name, "labels": [i % 10 for i in range(100)], "data": pixels, "filenames": []}
        with open(root / "cifar-10-batches-py" / name, "wb") as file:
            pickle.dump(batch, file, protocol=2)
    for part in ("train", "test", "extra"):
        pixels = generator.integers(0, 256, (32, 32, 3, 100), dtype=np.uint8)
        savemat(
            root / f"{part}_32x32.mat",
            {"X": pixels, "y": (np.arange(100) % 10 + 1)[:, None].astype(np.uint8)},
        )
    return root


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_trains(name, tmp_path, image_sets):
    options = SMALL
    if name.startswith(("cifar10", "svhn")):
        options = [*SMALL, *IMAGES, "--data.root", str(image_sets)]
    assert main(["fit", "--config", name, "--runs", str(tmp_path), *options]) == 0
    (checkpoint,) = tmp_path.glob("*/*/checkpoints/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == 2
    tensors = [v for k, v in state["state_dict"].items() if isinstance(v, torch.Tensor) and "record" not in k]
    assert all(bool(v.isfinite().all()) for v in tensors if v.is_floating_point())
    moved = state["state_dict"]["record.updates"] > 0
    assert bool(moved.any()) == ("supervised" not in name)
