"""What every data set promises, and that a new file is enough to add one."""

import importlib
import pkgutil
import subprocess
import sys
from inspect import isabstract

import pytest
import torch
from jsonargparse import ArgumentParser

import ssl_weighting.data
from ssl_weighting.data import Cifar10, SSLData, Svhn, Synthetic

SETS = [c for c in SSLData.__subclasses__() if c.__module__.startswith("ssl_weighting.data.")]
OFFLINE = ["Digits", "Synthetic"]


def parse(*arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SSLData, "data")
    return parser.instantiate(parser.parse_args(list(arguments))).data


def test_every_file_is_imported():
    files = {module.name for module in pkgutil.iter_modules(ssl_weighting.data.__path__)}
    assert all(hasattr(ssl_weighting.data, name) for name in files)
    assert {c.__name__ for c in SETS} >= {"Cifar10", "Svhn", "Digits", "Synthetic"}


def test_new_file_needs_no_registration(tmp_path, monkeypatch):
    (tmp_path / "brand_new.py").write_text(
        "from ssl_weighting.data.synthetic import Synthetic\nclass BrandNew(Synthetic):\n    pass\n"
    )
    code = (
        "import importlib, sys, ssl_weighting\n"
        "import importlib.util as u\n"
        "spec = u.find_spec('ssl_weighting.data')\n"
        f"spec.submodule_search_locations.append({str(tmp_path)!r})\n"
        "module = u.module_from_spec(spec)\n"
        "sys.modules['ssl_weighting.data'] = module\n"
        "spec.loader.exec_module(module)\n"
        "from jsonargparse import ArgumentParser\n"
        "p = ArgumentParser(); p.add_subclass_arguments(module.SSLData, 'data')\n"
        "print(p.parse_args(['--data', 'BrandNew', '--data.num_labeled', '4']).data.class_path)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "ssl_weighting.data.brand_new.BrandNew"


def test_short_names_and_the_base_class_arguments_parse():
    data = parse("--data", "Cifar10", "--data.num_labeled", "40", "--data.root", "there")
    assert isinstance(data, Cifar10)
    assert (data.num_labeled, str(data.root)) == (40, "there")
    data = parse("--data=Svhn", "--data.known_classes=[1,2]", "--data.verify_checksum=false")
    assert isinstance(data, Svhn)
    assert (data.known_classes, data.verify_checksum) == ([1, 2], False)
    data = parse("--data=Synthetic", "--data.shape=circles", "--data.split_seed=4", "--data.num_validation=9")
    assert isinstance(data, Synthetic)
    assert (data.name, data.split_seed, data.num_validation) == ("circles", 4, 9)


@pytest.mark.parametrize("kind", SETS, ids=lambda kind: kind.__name__)
def test_every_set_has_a_weak_view_and_complete_facts(kind):
    assert not isabstract(kind)
    data = kind()
    assert data.name
    assert len(set(data.all_class_names)) == data.num_classes >= 2
    assert "weak" in data.augmentations
    assert len(data.mean) == len(data.std)


@pytest.mark.parametrize("name", OFFLINE)
def test_sets_without_files_run_through(name):
    data = getattr(importlib.import_module("ssl_weighting.data"), name)(split_seed=0)
    data.prepare_data()
    data.setup()
    for part in ("labeled", "validation", "unlabeled", "test"):
        batch = data.sets[part].__getitems__([0, 1])
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        seen = data.view(batch.inputs, ("weak",))
        assert seen.dtype == torch.float32
        assert seen.shape == batch.inputs.shape
    assert data.load(True).checksum() == data.load(True).checksum()
    assert data.load(True).checksum() != data.load(False).checksum()
