"""Every import of the package is of something that its installation brings, or that an extra brings and is said."""

import ast
import importlib.util
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from ssl_weighting.errors import UserError

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ssl_weighting"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {"timm": "timm", "peft": "peft", "wandb_workspaces": "dashboard", "onnxruntime": "onnx"}
"""Modules of an extra: a test below says what happens without each."""
PEERS = {"backpack", "opacus", "curvlinops"}
"""What the laboratory alone imports, of the extra of that name."""
METHODS = {"to_pandas": "pandas", "from_pandas": "pandas", "read_pandas": "pandas", "to_polars": "polars"}
"""Methods of installed libraries that import another one."""
CHECKOUTS = {"train", "models", "semilearn"}
"""Modules of the peers' own checkouts, whose folders `bench throughput --peer` is given."""


def distribution(name):
    """Name of a distribution as the index compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements):
    return {distribution(re.match(r"[\w.-]+", line)[0]) for line in requirements}


def modules_of(tree):
    """Every module that a file imports: statements wherever they stand, strings, and methods that import one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield METHODS[node.attr]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield name.value


def imported(folder):
    """Third-party modules of a package, by name, with the files that import them."""
    found = {}
    for file in sorted(folder.rglob("*.py")):
        for module in modules_of(ast.parse(file.read_text(encoding="utf-8"))):
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names | {"ssl_weighting", folder.name} | CHECKOUTS:
                found.setdefault(top, set()).add(str(file.relative_to(folder)))
    return found


def providers(module):
    """Distributions that bring a module; one that is not installed is taken to be named as its module is."""
    return {distribution(name) for name in packages_distributions().get(module, [module])}


def test_every_import_is_declared():
    core = declared(PROJECT["dependencies"])
    missing = {
        module: files
        for module, files in imported(PACKAGE).items()
        if module not in EXTRAS and not providers(module) & core
    }
    assert not missing, "not among the dependencies of pyproject.toml"


RIVALS = {"setfit", "sentence_transformers"}
"""Of one claim, which says how to get them: they pull other versions of what the project needs."""


def test_the_laboratory_imports_what_is_declared():
    core = declared(PROJECT["dependencies"])
    found = imported(ROOT / "lab")
    assert {module for module in found if not providers(module) & core} <= PEERS | {*EXTRAS} | RIVALS
    assert set(found) >= PEERS
    assert all(providers(module) & declared(PROJECT["optional-dependencies"]["peers"]) for module in PEERS)


def test_the_product_does_not_know_the_laboratory():
    assert "lab" not in imported(PACKAGE)


def test_modules_of_an_extra_are_declared_by_it():
    for module, extra in EXTRAS.items():
        assert providers(module) & declared(PROJECT["optional-dependencies"][extra]), module
    assert set(EXTRAS) <= set(imported(PACKAGE))


def test_modules_of_an_extra_are_imported_where_they_are_needed():
    """None at the head of a file, where every command would meet it."""
    for file in PACKAGE.rglob("*.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        head = [node for node in body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert not {name.partition(".")[0] for name in modules_of(ast.Module(head, []))} & {*EXTRAS}, file


def test_the_check_sees_what_it_is_for(tmp_path):
    (tmp_path / "late.py").write_text(
        "import json\n"
        "def f(table):\n"
        "    from requests.adapters import HTTPAdapter\n"
        "    importlib.import_module('msgpack')\n"
        "    return table['label'].to_pandas()\n"
    )
    assert set(imported(tmp_path)) == {"requests", "msgpack", "pandas"}


def test_the_extras_that_are_named_exist():
    """In messages, documents and recipes."""
    folders = (PACKAGE, ROOT / "docs", ROOT / "docker", ROOT / "recipes")
    files = [
        p for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".md", ".yaml", ".ipynb")
    ]
    for file in [*files, *ROOT.glob("*.md")]:
        for extras in re.findall(r"ssl-weighting\[([\w, -]+)\]", file.read_text(encoding="utf-8")):
            assert set(extras.replace(" ", "").split(",")) <= set(PROJECT["optional-dependencies"]), file


# ---- without the extras ----


@pytest.fixture
def without(monkeypatch):
    """Hides modules, as if they were not installed."""
    find_spec = importlib.util.find_spec

    def hide(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in names else find_spec(name, *rest)
        )

    return hide


def test_without_timm(without):
    from ssl_weighting.backbones.timm_model import TimmModel

    without("timm")
    with pytest.raises(UserError, match=r"pip install 'ssl-weighting\[timm\]'"):
        TimmModel("resnet18")


def test_without_peft(without, tiny_bert):
    from ssl_weighting.backbones.transformer import Transformer

    without("peft")
    with pytest.raises(UserError, match=r"lora_rank=4: peft is .* pip install 'ssl-weighting\[peft\]'"):
        Transformer(str(tiny_bert), lora_rank=4)


def test_without_onnx(without, tiny_run, tmp_path, capsys):
    from ssl_weighting.app.cli import main
    from ssl_weighting.app.portable.formats import read_onnx

    without("onnx", "onnxscript", "onnxruntime")
    assert main(["export", str(tiny_run), "--out", str(tmp_path / "out"), "--format", "onnx"]) == 2
    assert (
        "onnx: onnx, onnxscript, onnxruntime are not installed; pip install 'ssl-weighting[onnx]'"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match=r"onnx: onnxruntime is not .* pip install 'ssl-weighting\[onnx\]'"):
        read_onnx(tmp_path, None)


def test_without_wandb_workspaces(without):
    from ssl_weighting.app.dashboard import layout

    without("wandb_workspaces")
    with pytest.raises(UserError, match=r"pip install 'ssl-weighting\[dashboard\]'"):
        layout("team", "project")


def test_without_tensorboard(without):
    from ssl_weighting.app.callbacks import TensorBoard

    without("tensorboard")
    with pytest.raises(UserError, match=r"pip install 'ssl-weighting\[tensorboard\]'"):
        TensorBoard()


def test_without_sentencepiece(monkeypatch):
    import transformers

    from ssl_weighting.app.paraphrase import Translator

    def needs(*_, **__):
        raise ImportError("MarianTokenizer requires the SentencePiece library")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", needs)
    with pytest.raises(UserError, match=r"--there m: .* pip install 'ssl-weighting\[paraphrase\]'"):
        Translator("m", "there", 0.9, 8, "cpu")


def test_without_the_peers(without, capsys):
    from lab.speed.timing import say_missing

    without("opacus", "backpack")
    say_missing(["json", "opacus", "backpack"])
    assert capsys.readouterr().out == (
        "no row of opacus, backpack: not installed; pip install --editable '.[peers]'\n"
    )
