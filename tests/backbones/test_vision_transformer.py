"""Image encoders of ``transformers``: what is loaded, what features are, sizes, and what cannot be had."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from made_up import LFS_POINTER, VISION, paint
from torch.func import functional_call, grad, vmap

from ssl_weighting.app.cli import main
from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.vision_transformer import VisionTransformer
from ssl_weighting.encoder import fingerprint
from ssl_weighting.errors import UserError
from ssl_weighting.influence.scope import scope_parameters

every_kind = pytest.mark.parametrize("kind", VISION)


def images(n=3, side=32):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(n))


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


@pytest.fixture
def copied(tiny_vision, tmp_path):
    def copy_of(kind):
        return Path(shutil.copytree(tiny_vision / kind, tmp_path / kind))

    return copy_of


def pooled(folder, kind, x):
    """What the library itself pools images to."""
    import transformers as t

    if kind == "clip":
        return t.CLIPModel.from_pretrained(folder).eval().vision_model(x).pooler_output
    if kind == "siglip":
        return t.SiglipModel.from_pretrained(folder).eval().vision_model(x).pooler_output
    return t.AutoModel.from_pretrained(folder).eval()(x).pooler_output


@every_kind
def test_features_are_the_models_pooled_output(tiny_vision, kind):
    backbone = VisionTransformer(str(tiny_vision / kind)).eval()
    with torch.no_grad():
        features = backbone(images())
        torch.testing.assert_close(features, pooled(tiny_vision / kind, kind, images()))
    assert features.shape == (3, backbone.feature_dim) == (3, 8)
    assert len(features.unique(dim=0)) == 3


@every_kind
def test_images_of_another_size(tiny_vision, kind):
    backbone = VisionTransformer(str(tiny_vision / kind)).eval()
    for side in (16, 48):
        features = backbone(images(side=side))
        assert features.shape == (3, 8) and features.isfinite().all()


@every_kind
def test_every_parameter_learns(tiny_vision, kind):
    network = Classifier(VisionTransformer(str(tiny_vision / kind)), 5)
    assert network.training and network.backbone.encoder.training
    network(images()).logits.square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


@every_kind
def test_the_last_block_is_the_last_layer_and_what_follows(tiny_vision, kind):
    network = Classifier(VisionTransformer(str(tiny_vision / kind)), 5)
    names = set(scope_parameters(network, "last_block"))
    assert any(".1." in name for name in names) and not any(
        ".0." in name for name in names if "layer" in name
    )
    assert not any("embeddings" in name for name in names)


@every_kind
def test_first_layers_can_be_kept(tiny_vision, kind):
    backbone = VisionTransformer(str(tiny_vision / kind), frozen_layers=1)
    learned = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert learned and not any("embeddings" in name for name in learned)
    with pytest.raises(UserError, match=r"^model\.backbone\.frozen_layers=2: must be at least 0 and below 2"):
        VisionTransformer(str(tiny_vision / kind), frozen_layers=2)


@every_kind
def test_copies_state_and_gradients_of_one_example(tiny_vision, kind):
    backbone = VisionTransformer(str(tiny_vision / kind)).eval()
    before, twin = backbone(images()), copy.deepcopy(backbone)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    twin.load_state_dict(backbone.state_dict())
    assert torch.equal(twin(images()), before)
    assert fingerprint(twin) == fingerprint(backbone)
    parameters = dict(backbone.named_parameters())

    def loss(given, x):
        return functional_call(backbone, given, (x[None],)).square().sum()

    each = vmap(grad(loss), (None, 0))(parameters, images())
    whole = grad(lambda given: functional_call(backbone, given, (images(),)).square().sum())(parameters)
    for name, value in whole.items():
        torch.testing.assert_close(each[name].sum(0), value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_vit_without_a_pooler_gives_the_class_token(tmp_path, tiny_vision):
    import transformers as t

    model = t.ViTModel.from_pretrained(tiny_vision / "vit", add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    backbone = VisionTransformer(str(tmp_path)).eval()
    assert backbone.encoder.pooler is None
    torch.testing.assert_close(backbone(images()), model(images()).last_hidden_state[:, 0])


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_normalisation_is_known_where_it_is_said(copied, file):
    folder = copied("dinov2")
    assert VisionTransformer(str(folder)).mean == ()
    said = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    nested = file == "processor_config.json"
    (folder / file).write_text(json.dumps({"image_processor": said} if nested else said))
    backbone = VisionTransformer(str(folder))
    assert (backbone.mean, backbone.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    (folder / file).write_text("no json")
    assert VisionTransformer(str(folder)).std == ()


def test_what_cannot_be_had_is_one_line(tiny_vision, tiny_bert, copied, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"^model\.backbone\.name=.*none: no image encoder to be had"
    ) as error:
        VisionTransformer(str(tmp_path / "none"))
    one_line(error)
    with pytest.raises(UserError, match=r"a bert, which reads no images; give an image encoder") as error:
        VisionTransformer(str(tiny_bert))
    one_line(error)
    folder = copied("vit")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"^model\.backbone\.name=.*vit: no image encoder to be had") as error:
        VisionTransformer(str(folder))
    one_line(error)
    weights.write_text(LFS_POINTER)
    with pytest.raises(UserError, match="is a pointer of git-lfs"):
        VisionTransformer(str(folder))
    weights.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no image encoder to be had"):
        VisionTransformer(str(folder))


def test_weights_that_are_not_whole(copied):
    from safetensors.torch import load_file, save_file

    folder = copied("dinov2")
    state = load_file(folder / "model.safetensors")
    state = {name: value for name, value in state.items() if "layer.1." not in name}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack .* more; give a whole image encoder"):
        VisionTransformer(str(folder))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_frozen_one_from_the_command_line(tiny_vision, folders, monkeypatch):
    monkeypatch.chdir(folders)
    options = {
        "data": "Images",
        "data.labeled": "labelled",
        "data.unlabeled": "pool",
        "data.size": 16,
        "data.num_validation": 4,
        "data.labeled_batch_size": 4,
        "data.unlabeled_batch_size": 4,
        "model.backbone": "VisionTransformer",
        "model.backbone.name": tiny_vision / "dinov2",
        "model.backbone.frozen": "true",
        "model.features.resize": 32,
        "model.features.cache": "cache",
        "model.algorithm": "PseudoLabel",
        "trainer.max_steps": 3,
        "trainer.accelerator": "cpu",
        "model.weighting.inner_steps": 1,
        "model.weighting.warmup_steps": 0,
    }
    typed = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    paint(folders / "new" / "1.png", 3)
    assert main(["fit", *typed]) == 0
    assert main(["predict", "runs/custom", "--on", "new"]) == 0
