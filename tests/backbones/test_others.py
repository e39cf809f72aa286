"""Networks of other libraries and of one's own."""

import json
import sys

import pytest
import torch
from jsonargparse import ArgumentParser
from made_up import LFS_POINTER
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from ssl_weighting.backbones import Backbone
from ssl_weighting.backbones.module_backbone import ModuleBackbone
from ssl_weighting.backbones.timm_model import TimmModel
from ssl_weighting.backbones.torchvision_model import TorchvisionModel
from ssl_weighting.errors import UserError

OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.body = nn.Linear(3, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.body(x))
"""


def one_line(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    return str(error.value)


def parse(*arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Backbone, "backbone")
    return parser.instantiate(parser.parse_args(list(arguments))).backbone


# ---- any nn.Module ----


def test_features_are_what_the_head_was_given_whatever_follows_it():
    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 7)
    x = torch.randn(5, 3)
    backbone = ModuleBackbone(nn.Sequential(body, head, nn.Softmax(-1)), head="1")
    assert backbone.feature_dim == 4
    assert torch.equal(backbone(x), body(x))
    assert not any(name.startswith("module.1") for name, _ in backbone.named_parameters())


def test_a_users_class_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_own_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    backbone = parse(
        *("--backbone=ModuleBackbone", "--backbone.head=head", "--backbone.module=my_own_net.Net"),
        "--backbone.module.width=9",
    )
    assert backbone.feature_dim == 9
    assert type(backbone.module) is sys.modules["my_own_net"].Net
    assert backbone(torch.rand(2, 3)).shape == (2, 9)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("fc", r"model\.backbone\.head=fc: no such module; Sequential has the linear layers 0, 2"),
        ("1", "a ReLU, not a linear layer"),
        ("", "has the linear layers 0, 2"),
    ],
)
def test_head_that_is_none_is_refused(head, message):
    with pytest.raises(UserError, match=message) as error:
        ModuleBackbone(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), head)
    one_line(error)


def test_head_of_every_token_is_refused():
    with pytest.raises(UserError, match=r"a tensor of shape \(2, 5, 3\) instead of one row") as error:
        ModuleBackbone(nn.Sequential(nn.Linear(3, 4)), "0")(torch.rand(2, 5, 3))
    one_line(error)


# ---- torchvision ----


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "mnasnet0_5"])
def test_torchvision_heads_are_found(name):
    torch.manual_seed(0)
    ours = TorchvisionModel(name).eval()
    torch.manual_seed(0)
    model = models.get_model(name).eval()
    seen = {}
    head = model.get_submodule(ours.head_name)
    head.register_forward_pre_hook(lambda module, given: seen.update(features=given[0]))
    logits = model(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (2, 1000)
    features = ours(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(features, seen["features"])


def test_pretrained_weights_come_from_torchs_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    model = models.shufflenet_v2_x0_5()
    torch.save(model.state_dict(), folder / url.rsplit("/", 1)[1])
    ours = TorchvisionModel("shufflenet_v2_x0_5", "DEFAULT")
    assert torch.equal(ours.module.conv5[0].weight, model.conv5[0].weight)


def test_weights_that_hold_code_are_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    marker = tmp_path / "was-run"

    class Hostile:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save({"x": Hostile()}, folder / models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rsplit("/", 1)[1])
    with pytest.raises(UserError, match=r"model\.backbone\.weights=DEFAULT: cannot be loaded") as error:
        TorchvisionModel("shufflenet_v2_x0_5", "DEFAULT")
    one_line(error)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet19"},
            r"model\.backbone\.name=resnet19: no such torchvision model; did you mean resnet1",
        ),
        ({"name": "squeezenet1_0"}, "does not end in a linear layer"),
        ({"name": "resnet18", "weights": "BEST"}, r"weights=BEST: resnet18 has IMAGENET1K_V1, DEFAULT"),
    ],
)
def test_torchvision_mistakes(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        TorchvisionModel(**arguments)
    one_line(error)


# ---- timm ----


def test_timm_models_of_several_kinds():
    pytest.importorskip("timm")
    for name, arguments in (
        ("test_convnext", {}),
        ("test_mambaout", {}),
        ("test_vit", {"img_size": 32}),
        ("mobilenetv3_small_050", {}),
    ):
        backbone = TimmModel(name, arguments=arguments).eval()
        assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, backbone.feature_dim), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnt18"}, r"model\.backbone\.name=resnt18: no such timm model; did you mean .*resnet18"),
        ({"name": "test_resnet", "arguments": {"colour": 1}}, r"model\.backbone\.arguments=.*colour"),
    ],
)
def test_timm_mistakes(arguments, message):
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=message) as error:
        TimmModel(**arguments)
    one_line(error)


def test_timm_that_cannot_be_had_is_said_in_one_line(monkeypatch):
    timm = pytest.importorskip("timm")

    def unreachable(*_, **__):
        raise OSError("the hub\ncannot be reached")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        UserError, match=r"cannot be made .*the hub cannot be reached.*pretrained: false"
    ) as error:
        TimmModel("resnet18", pretrained=True)
    one_line(error)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm is not installed; pip install 'ssl-weighting\[timm\]'"):
        TimmModel("resnet18")


@pytest.fixture
def timm_folder(tmp_path):
    """A folder as timm writes it, by hand, of a network of random weights; and that network."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    shown = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 160, 160], "classifier": "fc"}
    shown |= {"first_conv": "conv1"}
    content = {"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": shown}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return tmp_path, model


def test_a_folder_of_timm(timm_folder):
    folder, model = timm_folder
    x = torch.rand(2, 3, 32, 32)
    backbone = TimmModel(str(folder), pretrained=True, frozen=True).eval()
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(backbone(x), expected)
    assert backbone.frozen and backbone.feature_dim == expected.shape[1]
    torch.manual_seed(0)
    assert not torch.equal(TimmModel(str(folder)).eval()(x), expected)  # pretrained: false


def cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def pointer(folder):
    (folder / "model.safetensors").write_text(LFS_POINTER)


def other_weights(folder):
    save_file({"x": torch.zeros(2)}, folder / "model.safetensors")


def none(folder):
    (folder / "model.safetensors").unlink()


def no_json(folder):
    (folder / "config.json").write_text("{")


def of_transformers(folder):
    (folder / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "cannot be made"),
        (pointer, "its model.safetensors is a pointer of git-lfs"),
        (other_weights, "its weights lack .* and .* more; give a whole network"),
        (none, "cannot be made"),
        (no_json, "cannot be made"),
        (of_transformers, "is no folder of timm's; give --model.backbone VisionTransformer"),
    ],
)
def test_a_folder_of_timm_that_is_not_whole(timm_folder, spoil, message):
    folder, _ = timm_folder
    spoil(folder)
    with pytest.raises(UserError, match=rf"^model\.backbone\.name=.*{message}") as error:
        TimmModel(str(folder), pretrained=True)
    one_line(error)


def test_what_is_frozen_as_it_was_drawn_is_said():
    pytest.importorskip("timm")
    with pytest.warns(UserWarning, match=r"pretrained=false: a frozen network .*pretrained true$"):
        TimmModel("test_resnet", frozen=True)
    with pytest.warns(UserWarning, match=r"weights=null: a frozen network .*weights DEFAULT$"):
        TorchvisionModel("shufflenet_v2_x0_5", frozen=True)
