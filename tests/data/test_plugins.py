"""What every data set promises, and that a new file is enough to add one."""

import importlib
import pkgutil
import sys
from inspect import isabstract, signature

import pytest
import torch
from jsonargparse import ArgumentParser

import ssl_weighting.data
from ssl_weighting.data import Cifar10, SSLData, Svhn, Synthetic


def below(kind):
    return {c for s in kind.__subclasses__() for c in {s} | below(s)}


SETS = sorted(
    (c for c in below(SSLData) if c.__module__.startswith("ssl_weighting.data.") and not isabstract(c)),
    key=lambda c: c.__name__,
)
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
    (tmp_path / "brand_new.py").write_text("imported = True\n")
    package = ssl_weighting.data
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    try:
        package.__spec__.loader.exec_module(package)  # as the first import does
        assert sys.modules["ssl_weighting.data.brand_new"].imported
    finally:
        sys.modules.pop("ssl_weighting.data.brand_new", None)
        vars(package).pop("brand_new", None)


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


def needs_nothing(kind):
    return all(
        p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in signature(kind).parameters.values()
    )


# Sets of a user's own data cannot be made without it; their own tests make them.
@pytest.mark.parametrize(
    "kind",
    [k for k in SETS if needs_nothing(k) and hasattr(k, "all_class_names")],
    ids=lambda kind: kind.__name__,
)
def test_every_set_has_a_weak_view_and_complete_facts(kind):
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
        assert batch[1].dtype == torch.int64
        assert batch._fields == ("inputs", "row" if part == "unlabeled" else "labels")
        seen = data.view(batch.inputs, ("weak",))
        assert seen.dtype == torch.float32
        assert seen.shape == batch.inputs.shape
    assert data.load(True).checksum() == data.load(True).checksum()
    assert data.load(True).checksum() != data.load(False).checksum()
