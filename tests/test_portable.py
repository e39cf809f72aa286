"""A model in a folder of its own predicts what its run does, in every format, without lightning and the data."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from made_up import VISION, write_films
from PIL import Image
from safetensors.torch import load_file, save_file

import ssl_weighting
from ssl_weighting.app.cli import main
from ssl_weighting.app.portable import command, writing
from ssl_weighting.app.portable.formats import read_onnx
from ssl_weighting.app.portable.inputs import InputOptions
from ssl_weighting.app.portable.model import PortableModel
from ssl_weighting.app.portable.network import _resize_matrix, merge_lora
from ssl_weighting.backbones.transformer import Transformer
from ssl_weighting.data.digits import Digits
from ssl_weighting.data.imdb import HTML, clean
from ssl_weighting.errors import UserError

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
    "a head for rotations": {"model.algorithm": "ReMixMatch", "data.num_validation": 30},
    "float64": {"trainer.precision": "64-true"},
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
LEFT_OUT = {"torch": ("dinov3", "vit", "clip", "siglip")}
"""Families that one format leaves out: ONNX is made of the same program, and making it takes seconds of torch."""
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
            first = {
                key: whole.pop(key) for key in ("data", "model.backbone", "model.algorithm") if key in whole
            }
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
    if "data" not in FAMILIES[family]:
        return Digits().load(train=False).inputs[:300]
    return np.random.default_rng(0).standard_normal((300, 2))


def cases():
    for family in FAMILIES:
        for file_format in FORMATS[: 1 if family in ("float64", "a head for rotations") else 3]:
            if family in LEFT_OUT.get(file_format, ()):
                continue
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


# ---- by itself ----

ALONE = """
import sys
for name in ({hidden}):
    sys.modules[name] = None
import ssl_weighting
model = ssl_weighting.load({folder!r}, device="cpu")
print(model.predict({examples}))
loaded = [name for name in sys.modules if name.partition(".")[0] in ({hidden}) and sys.modules[name]]
loaded += [name for name in sys.modules if name.startswith("ssl_weighting.data")]
assert not loaded, loaded
"""
LIGHTNING = '"lightning", "pytorch_lightning", "jsonargparse", "pyarrow", '


def python(code, folder, *arguments):
    """What a new interpreter prints, and that it ended well."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("family", "file_format", "hidden"),
    [
        ("frozen, resized, mixed", "safetensors", LIGHTNING),
        ("bert", "safetensors", LIGHTNING),
        ("conv", "onnx", LIGHTNING + '"torch", "transformers", '),
    ],
)
def test_without_lightning_and_the_data(made, in_home, tmp_path, family, file_format, hidden):
    run = made(family)
    assert export(run, tmp_path / "out", file_format) == 0
    if family == "conv":
        given, typed = np.zeros((2, 1, 8, 8), "uint8"), "__import__('numpy').zeros((2, 1, 8, 8), 'uint8')"
    elif family == "bert":
        given, typed = TEXTS[:2], repr(TEXTS[:2])
    else:
        given, typed = examples_of(family, run)[:2], "['1.jpg', '2.png']"
        for name, path in zip(("1.jpg", "2.png"), given, strict=True):
            shutil.copy(path, tmp_path / name)
    said = python(ALONE.format(hidden=hidden, folder="out", examples=typed), tmp_path)
    assert said == str(ssl_weighting.load(run).predict(given))


@pytest.mark.parametrize(
    ("family", "file_format"),
    [("wrn", "onnx"), ("bert", "onnx"), ("conv", "onnx"), ("conv", "torch"), ("conv", "safetensors")],
)
def test_the_lines_of_the_readme(made, in_home, tmp_path, monkeypatch, family, file_format):
    run = made(family)
    monkeypatch.setattr("ssl_weighting.data.text.TextData.replacements", ((r"<br />", " "), ("\\\\n", " ")))
    assert export(run, tmp_path / "out", file_format) == 0
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), flags=re.S)
    (examples, given) = {
        "wrn": (["1.jpg", "2.jpg"], sorted((run.parents[3] / "labelled").rglob("*.jpg"))[3:5]),
        "bert": (["a text", "another"], [" a good<br />film", r"bad\nnot good "]),
        "conv": (None, Digits().load(train=False).inputs[:20].numpy()),
    }[family]
    if family == "wrn":
        for name, path in zip(examples, given, strict=True):
            shutil.copy(path, tmp_path / name)
    elif family == "bert":
        assert "import re\n" in code
        for old, new in zip(examples, given, strict=True):
            assert repr(old) in code
            code = code.replace(repr(old), repr(new))
    else:
        np.save(tmp_path / "examples.npy", given)
    hidden = {"onnx": ("torch", "ssl_weighting"), "torch": ("ssl_weighting",), "safetensors": ("lightning",)}
    first = f"import sys\nfor name in {hidden[file_format]}: sys.modules[name] = None\n"
    said = python(first + code, tmp_path)
    assert said == str(ssl_weighting.load(run).predict(given))
    assert len(code.splitlines()) <= 35


def test_the_readme_tells_of_the_run(made, tmp_path):
    run = made("conv")
    assert export(run, tmp_path / "digits") == 0
    text = (tmp_path / "digits" / "README.md").read_text()
    rows = (run / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    values = [row.split(",")[columns.index("test/error")] for row in rows[1:]]
    error = float([value for value in values if value][-1])
    assert f"- test error: {100 * error:.2f} %\n" in text
    assert re.search(r"test error of a linear probe on the same labels, without the pool: [\d.]+ %", text)
    assert "40 labelled examples train, 1297 are in the pool" in text
    assert "Supervised on digits, 2 steps, seed 0" in text
    shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "model.ckpt")
    assert export(tmp_path / "model.ckpt", tmp_path / "alone") == 0
    assert "The run's record was not beside the checkpoint" in (tmp_path / "alone" / "README.md").read_text()


def test_what_stays_with_the_run_is_said(made, in_home, tmp_path, capsys):
    assert export(made("frozen, resized, mixed"), tmp_path / "out") == 0
    assert "own_probability stays with the run: ssl-weighting predict " in capsys.readouterr().out


def test_no_path_of_this_machine_is_in_it(made, in_home, tmp_path):
    run = made("frozen, resized, mixed")
    assert export(run, tmp_path / "out") == 0
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert str(run.parents[3]).encode() not in path.read_bytes(), path
            assert path.stat().st_mode & 0o777 == (tmp_path / "out" / "README.md").stat().st_mode & 0o777, (
                path
            )


# ---- what is refused ----


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out", "new", "--format", "onxx"], "--format onxx: no such format; did you mean onnx?"),
        (
            ["--out", "new", "--format", "pickle"],
            "--format pickle: no such format; there are onnx, safetensors, torch",
        ),
        (["--out", "there"], "--out there: is there already and stays as it is; give another name"),
        (["--out", "no/such/new"], "--out no/such/new: no/such is no folder; make it, or give another name"),
        ([], "--out: missing; type ssl-weighting export RUN --out FOLDER, a new one"),
        (["--out", "new", "--optimise", "yes"], "--optimise: no such option; export takes --out, --format, "),
    ],
)
def test_bad_input(made, tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("RUN").symlink_to(made("conv"))
    monkeypatch.setattr(command, "restored", None)  # nothing slow is begun
    assert main(["export", "RUN", *words]) == 2
    assert expected in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RUN", "there"]


def test_an_option_other_than_the_runs_is_said(made, tmp_path, capsys):
    other = ["--data.evaluation_batch_size", "7"]
    assert main(["export", str(made("conv")), "--out", str(tmp_path / "out"), *other]) == 0
    assert "not as in the run: data.evaluation_batch_size" in capsys.readouterr().err


def test_help_names_no_option_that_is_refused(capsys):
    assert main(["export", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--data.KEY" in said
    assert "--device" not in said


def test_a_run_without_a_checkpoint(made, tmp_path, capsys):
    shutil.copytree(made("conv"), tmp_path / "run", ignore=shutil.ignore_patterns("*.ckpt"))
    assert export(tmp_path / "run", tmp_path / "out") == 2
    assert "has no checkpoints/last.ckpt; the run was stopped before it wrote one" in capsys.readouterr().err


def test_other_commands_say_what_it_is(made, tmp_path, capsys):
    assert export(made("conv"), tmp_path / "out") == 0
    assert main(["predict", str(tmp_path / "out"), "--on", "new"]) == 2
    said = capsys.readouterr().err
    assert (
        f"RUN={tmp_path / 'out'}: an exported model, which Python reads: ssl_weighting.load('{tmp_path}/out')"
        in said
    )


def test_code_of_ones_own_is_kept_as_a_graph_alone(made, tmp_path, monkeypatch, capsys):
    (tmp_path / "net_to_export.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.body, self.fc = nn.Conv2d(1, 6, 3), nn.Linear(6, 5)\n\n"
        "    def forward(self, x):\n        return self.fc(self.body(x).relu().mean((2, 3)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    recipe = str(Path(__file__).parents[1] / "recipes" / "digits_supervised.yaml")
    options = [
        "--model.backbone",
        "ModuleBackbone",
        "--model.backbone.module",
        "net_to_export.Net",
        "--runs",
        "runs",
    ]
    short = [word for key, value in SHORT.items() for word in (f"--{key}", str(value))]
    assert main(["fit", "--config", recipe, *options, "--model.backbone.head", "fc", *short]) == 0
    run = Path("runs", "digits_supervised")
    assert export(run, Path("out")) == 2
    assert (
        "model.backbone=ModuleBackbone is made of code of your own, which no folder holds"
        in capsys.readouterr().err
    )
    assert not Path("out").exists()
    assert export(run, Path("out"), "torch") == 0
    images = Digits().load(train=False).inputs[:50]
    found = PortableModel(Path("out")).probabilities(images)
    assert np.abs(found - ssl_weighting.load(run, "cpu").probabilities(images)).max() <= 1e-5


def test_data_that_are_prepared_in_a_way_of_their_own(made, tmp_path, monkeypatch, capsys):
    prepare = Digits.prepare
    monkeypatch.setattr(Digits, "prepare", lambda self, raw: 1 - prepare(self, raw))
    assert export(made("conv"), tmp_path / "out") == 2
    assert "what was exported predicts otherwise, by " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_where_one_class_has_all_logarithms_tell():
    sure = np.array([[1.0, 1e-12, 1e-28]], np.float32)
    other = np.array([[1.0, 1e-11, 1e-28]], np.float32)
    assert np.abs(sure - other).max() < writing.TOLERANCE
    assert writing._difference_of_logarithms(other, sure) == pytest.approx(
        np.log(10) / -np.log(1e-12), rel=1e-5
    )
    assert writing._difference_of_logarithms(sure, sure) == 0


def test_a_network_that_becomes_no_graph(made, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.export, "export", fails)
    assert export(made("conv"), tmp_path / "out", "torch") == 2
    said = capsys.readouterr().err
    assert (
        "--format torch: SmallConvNet does not become such a graph (RuntimeError: no such operator); give"
        in said
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def exported(made, tmp_path):
    assert export(made("conv"), tmp_path / "out") == 0
    return tmp_path / "out"


def changed(folder, **values):
    content = json.loads((folder / "model.json").read_text())
    for key, value in values.items():
        inside = content
        *parents, last = key.split("__")
        for parent in parents:
            inside = inside[parent]
        inside[last] = value
    (folder / "model.json").write_text(json.dumps(content))


def drop_a_weight(folder):
    state = load_file(folder / "model.safetensors")
    del state["classifier.heads.classifier.bias"]
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda f: (f / "model.json").write_text("{"), r"model.json: damaged \(JSONDecodeError"),
        (lambda f: changed(f, version=9), "of a later version of this program; pip install -U ssl-weighting"),
        (lambda f: changed(f, inputs={}), r"model.json: damaged \(KeyError"),
        (lambda f: changed(f, format="pickle"), r"model.json: damaged \(ValueError: format pickle"),
        (lambda f: changed(f, format="torch"), "a program of torch, and to read one may run code"),
        (
            lambda f: changed(f, network__backbone="os.system"),
            "backbone=os.system: no network of this version",
        ),
        (lambda f: changed(f, network__num_classes=9), r"model.safetensors: damaged \(RuntimeError"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "model.safetensors: no such file; export the run anew",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"x"),
            r"model.safetensors: damaged \(SafetensorError",
        ),
        (
            drop_a_weight,
            r"not of the network that model.json tells of \(classifier.heads.classifier.bias and 0 more",
        ),
    ],
)
def test_a_damaged_folder(exported, damage, expected):
    damage(exported)
    with pytest.raises(UserError, match=expected) as raised:
        ssl_weighting.load(exported)
    assert "\n" not in str(raised.value)


def test_a_damaged_graph(tmp_path):
    need("onnx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"model.onnx: damaged \("):
        read_onnx(tmp_path, None)
    with pytest.raises(
        UserError, match="device=cuda: onnxruntime chooses by itself; give cpu, or leave it out"
    ):
        read_onnx(tmp_path, "cuda")


# ---- what it takes ----


def test_arrays(exported):
    model = ssl_weighting.load(str(exported))
    assert (
        model.probabilities([]).shape == (0, 10) == model.probabilities(np.zeros((0, 1, 8, 8), "uint8")).shape
    )
    for wrong, expected in (
        (
            np.zeros((2, 1, 8, 9), "uint8"),
            r"\(n, 1, 8, 9\); this model takes uint8 of shape \(n, 1, 8, 8\)",
        ),
        (np.zeros((2, 1, 8, 8)), r"examples: float32 of shape"),
        ("new", r'examples="new": one name; an exported model takes a list: \[\'new\'\]'),
        (["a.png"], "examples: 1 names; this model takes uint8"),
        (object(), "examples: object of shape"),
    ):
        with pytest.raises(UserError, match=expected):
            model.predict(wrong)


def test_numbers_that_are_none(tmp_path):
    takes = InputOptions("arrays", (2,), "float32")
    with pytest.raises(UserError, match="row 1 holds NaN or infinity"):
        takes.batches(np.array([[0, 1], [np.nan, 0], [0, np.inf]]), tmp_path)


def test_images_that_cannot_be_read(made, in_home, tmp_path):
    assert export(made("wrn"), tmp_path / "out") == 0
    model = ssl_weighting.load(tmp_path / "out")
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(
        UserError, match=r"png cannot be read \(UnidentifiedImageError: .*; repair it or leave it out"
    ):
        model.predict([tmp_path / "broken.png"])
    with pytest.raises(
        UserError, match=r"this model takes a list of paths, or uint8 of shape \(n, 3, 32, 32\)"
    ):
        model.predict(np.zeros((1, 3, 30, 32), "uint8"))
    pixels = np.zeros((1, 3, 32, 32), "uint8")
    assert model.probabilities(pixels) == pytest.approx(
        ssl_weighting.load(made("wrn")).probabilities(pixels), abs=1e-6
    )


def test_texts_are_cleaned_alike(tmp_path):
    takes = InputOptions.of_json(json.loads(json.dumps(InputOptions("texts", replacements=HTML).to_json())))
    raw = ["  a<br />b &quot;c&quot; <p> <a href='x'>d</a>", r"e\nf \\1", "\u00a0plain\n", '<a href="\n">']
    assert [takes._cleaned(text) for text in raw] == clean(pa.array(raw)).to_pylist()
    with pytest.raises(UserError, match="not all of them are texts"):
        takes.batches(["a", 1], tmp_path)


def test_a_resize_is_two_matrix_products():
    images = torch.rand(2, 3, 9, 14)
    expected = torch.nn.functional.interpolate(images, size=(20, 20), mode="bicubic", antialias=True)
    found = _resize_matrix(9, 20) @ images @ _resize_matrix(14, 20).T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    shrunk = torch.nn.functional.interpolate(images, size=(5, 5), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        _resize_matrix(9, 5) @ images @ _resize_matrix(14, 5).T, shrunk, rtol=0, atol=1e-5
    )


def test_what_lora_has_learned_is_added_to_the_weights(tiny_bert):
    if find_spec("peft") is None:
        pytest.skip("peft is not installed: pip install 'ssl-weighting[peft]'")
    torch.manual_seed(0)
    network = Transformer(str(tiny_bert), pooling="mean", lora_rank=2).eval()
    ids = torch.randint(5, 60, (4, 7))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        untrained = network(batch)
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.normal_()
        expected = network(batch)
        merge_lora(network)
        found = network(batch)
    assert not any("lora_" in name or "base_layer" in name for name, _ in network.named_parameters())
    assert (expected - untrained).abs().max() > 1e-2, "else it has learned nothing"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
