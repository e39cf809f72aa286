"""Every recipe in the folder parses and trains two steps, on small data in the sets' own formats."""

import pytest
import torch

from ssl_weighting.app.cli import main
from ssl_weighting.app.recipes import recipe_names

SMALL = [
    *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--model.weighting.inner_steps", "1"),
    *(
        "--model.weighting.warmup_steps",
        "0",
        "--model.weighting.update_masked",
        "true",
        "--data.labeled_batch_size",
        "4",
    ),
    *("--data.unlabeled_batch_size", "8", "--data.validation_batch_size", "8"),
]
IMAGES = [
    *("--data.num_labeled", "20", "--data.num_validation", "20", "--data.download", "false"),
    *("--data.verify_checksum", "false", "--model.backbone.depth", "10", "--model.backbone.width", "1"),
]


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_trains(name, tmp_path, image_sets, request):
    options = SMALL
    if name.startswith("imdb"):
        bert, reviews = request.getfixturevalue("tiny_bert"), request.getfixturevalue("tiny_imdb")
        options = [
            *(
                *SMALL,
                "--data.root",
                str(reviews),
                "--data.labeled",
                "random",
                "--model.backbone.name",
                str(bert),
            ),
            *("--model.backbone.layers", "null", "--model.backbone.frozen_layers", "0"),
            *("--data.cache", str(tmp_path / "cache")),
        ]
    if name.startswith(("cifar10", "svhn")):
        options = [*SMALL, *IMAGES, "--data.root", str(image_sets)]
    assert main(["fit", "--config", name, "--runs", str(tmp_path), *options]) == 0
    (checkpoint,) = tmp_path.glob("*/*/checkpoints/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == 2
    tensors = [v for k, v in state["state_dict"].items() if isinstance(v, torch.Tensor) and "stats" not in k]
    assert all(bool(v.isfinite().all()) for v in tensors if v.is_floating_point())
    moved = state["state_dict"]["weighting.stats.updates"] > 0
    assert bool(moved.any()) == ("supervised" not in name)
