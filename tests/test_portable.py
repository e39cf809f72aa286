"""A model in a folder of its own predicts what its run does, in every format, without lightning and the data."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import VISION, write_films
from PIL import Image
from safetensors.torch import load_file, save_file

import ssl_weighting
from ssl_weighting.app.cli import main
from ssl_weighting.app.portable.model import PortableModel
from ssl_weighting.data.digits import Digits

pytestmark = pytest.mark.filterwarnings("ignore")
FORMATS = ("safetensors", "torch", "onnx")
TEXTS = [
    "a good film",
    "",
    "  bad bad acting , it was not loved and very boring ! ",
    None,
    "great " * 40 + "plot",
]
SHORT = {
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
    "trainer.accelerator": "cpu",
    "data.evaluate_test": "false",
    "model.features.views": 0,
}
FEW = {"data.labeled_batch_size": 4, "data.unlabeled_batch_size": 4, "data.num_validation": 0}
VISIONS = {
    kind: {"data": "Images", "model.backbone": "VisionTransformer", "model.backbone.name": kind}
    for kind in VISION
}
BERT = {"data": "Text", "model.backbone": "Transformer", "model.backbone.name": "bert"}
FAMILIES: dict[str, dict[str, object]] = {
    "conv": {},
    "mlp": {"data": "Synthetic", "model.backbone": "MLP"},
    "precomputed": {"data": "Synthetic", "model.backbone": "Precomputed", "model.backbone.feature_dim": 2},
    "wrn": {
        "data": "Images",
        "model.backbone": "WideResNet",
        "model.backbone.in_channels": 3,
        "model.backbone.depth": 10,
        "model.backbone.width": 1,
    },
    "torchvision": {
        "data": "Images",
        "model.backbone": "TorchvisionModel",
        "model.backbone.name": "resnet18",
    },
    "timm": {"data": "Images", "model.backbone": "TimmModel", "model.backbone.name": "test_resnet"},
    **VISIONS,
    "bert": BERT,
    "bert, mean, LoRA": BERT
    | {"model.backbone.pooling": "mean", "model.backbone.lora_rank": 2, "data.keep": "start"},
    "frozen, resized, mixed": VISIONS["vit"]
    | {"model.backbone.frozen": "true", "model.features.resize": 40, "baseline": "choose"},
    "frozen, hidden": VISIONS["dinov2"] | {"model.backbone.frozen": "true", "model.features.hidden": "[5]"},
}
QUICK = ("conv", "precomputed")
EXTRAS = {"timm": "timm", "bert, mean, LoRA": "peft"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_bert, tiny_vision):
    """A function that gives a family's run, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("portable")
    draw = np.random.default_rng(0)
    for number in range(27):
        where = (
            folder / ("labelled", "pool")[number >= 18] / ("rose", "tulip", "lily", ".")[min(number // 6, 3)]
        )
        where.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((50, 40), Image.Resampling.BICUBIC)
        image.save(where / f"{number}.{('jpg', 'png')[number % 2]}")
    write_films(folder / "films.csv", "good", "bad")
    shutil.copytree(tiny_bert, folder / "bert")
    state = load_file(folder / "bert" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    wide = {
        name: value + 0.4 * torch.randn(value.shape, generator=generator) for name, value in state.items()
    }
    save_file(
        wide, folder / "bert" / "model.safetensors", {"format": "pt"}
    )  # else all texts look alike to it
    for kind in VISION:
        shutil.copytree(tiny_vision / kind, folder / kind)
    shutil.copy(Path(__file__).parents[1] / "recipes" / "digits_supervised.yaml", folder / "r.yaml")
    given = {
        "Images": FEW | {"data.labeled": "labelled", "data.unlabeled": "pool", "data.num_labeled": "null"},
        "Text": FEW
        | {"data.train": "films.csv", "data.num_labeled": "null", "data.max_length": 12, "data.cache": "c"},
        "Synthetic": FEW | {"data.shape": "moons", "data.num_labeled": 8},
    }

    def run(family):
        if (extra := EXTRAS.get(family)) and find_spec(extra) is None:
            pytest.skip(f"{extra} is not installed: pip install 'ssl-weighting[{extra}]'")
        runs = folder / "runs" / family
        if not runs.is_dir():
            options = FAMILIES[family]
            whole = options | given.get(options.get("data"), {}) | SHORT | {"runs": runs}
            if "model.backbone.frozen" in options:
                whole |= {"model.features.cache": "c"}
            first = {key: whole.pop(key) for key in ("data", "model.backbone") if key in whole}
            words = [word for key, value in (first | whole).items() for word in (f"--{key}", str(value))]
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                assert main(["fit", "--config", "r.yaml", *words]) == 0
        (one,) = (runs / "r").iterdir()
        return one

    return run


@pytest.fixture
def in_home(made, monkeypatch):
    """The folder that runs name their data and encoders from."""
    monkeypatch.chdir(made("conv").parents[3])


def need(file_format):
    if file_format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            if find_spec(name) is None:
                pytest.skip(f"{name} is not installed: pip install 'ssl-weighting[onnx]'")


def export(run, out, file_format="safetensors"):
    need(file_format)
    return main(["export", str(run), "--out", str(out), "--format", file_format])


def examples_of(family, run):
    """Real ones: files, texts, digits, points."""
    folder = run.parents[3]
    if FAMILIES[family].get("data") == "Images":
        return sorted((folder / "labelled").rglob("*.*")) + sorted((folder / "pool").rglob("*.*"))
    if FAMILIES[family].get("data") == "Text":
        return [
            *TEXTS,
            *(line.split(",")[1] for line in (folder / "films.csv").read_text().splitlines()[1:30]),
        ]
    if family == "conv":
        return Digits().load(train=False).inputs[:300]
    return np.random.default_rng(0).standard_normal((300, 2))


def cases():
    for family in FAMILIES:
        for file_format in FORMATS:
            slow = file_format != "safetensors" and family not in QUICK
            yield pytest.param(family, file_format, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("family", "file_format"), [*cases()])
def test_the_same_probabilities(made, in_home, tmp_path, family, file_format):
    run = made(family)
    examples = examples_of(family, run)
    expected = ssl_weighting.load(run, device="cpu").probabilities(examples)
    assert np.ptp(expected, axis=0).max() > 1e-3, "else nothing is compared"
    assert export(run, tmp_path / "out", file_format) == 0
    model = PortableModel(tmp_path / "out", "cpu")
    found = model.probabilities(examples)
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5
    np.testing.assert_allclose(model.probabilities(examples[:1]), expected[:1], rtol=0, atol=1e-5)
    assert model.predict(examples) == ssl_weighting.load(run, device="cpu").predict(examples)
