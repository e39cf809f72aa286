import hashlib
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from refusals import refused
from torchvision.datasets import CIFAR10

from ssl_weighting.data import Cifar10
from ssl_weighting.data.files import DataUnpickler

FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def content(n=20, seed=0):
    data = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
    return {
        "batch_label": "training batch 1 of 5",
        "labels": [i % 10 for i in range(n)],
        "data": data,
        "filenames": [f"{i:05d}.png" for i in range(n)],
    }


def as_python2(batch):
    """The official files' bytes: protocol 2, strings of Python 2, numpy 1's names."""

    def text(s):
        return b"U" + bytes([len(s)]) + s.encode()

    pixels = batch["data"].tobytes()
    return b"".join(
        [
            b"\x80\x02}(",
            *(text("batch_label"), text(batch["batch_label"])),
            *(text("labels"), b"](", *(b"K" + bytes([c]) for c in batch["labels"]), b"e"),
            *(text("data"), b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85", text("b")),
            *(b"\x87R(K\x01", *(b"M" + struct.pack("<H", n) for n in batch["data"].shape), b"\x86"),
            *(b"cnumpy\ndtype\n", text("u1"), b"K\x00K\x01\x87R(K\x03", text("|"), b"NNN"),
            *(b"J\xff\xff\xff\xff" * 2, b"K\x00tb\x89T", struct.pack("<I", len(pixels)), pixels, b"tb"),
            *(text("filenames"), b"](", *map(text, batch["filenames"]), b"e"),
            b"u.",
        ]
    )


@pytest.fixture
def folder(tmp_path):
    """A folder that holds a small cifar-10-batches-py."""
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for seed, name in enumerate(FILES):
        (batches / name).write_bytes(as_python2(content(seed=seed)))
    return tmp_path


def cifar10(root, **arguments):
    return Cifar10(root=root, **({"download": False, "verify_checksum": False} | arguments))


def official_md5(monkeypatch, folder):
    md5 = [hashlib.md5((folder / "cifar-10-batches-py" / name).read_bytes()).hexdigest() for name in FILES]
    monkeypatch.setattr(CIFAR10, "train_list", [list(pair) for pair in zip(FILES[:5], md5, strict=False)])
    monkeypatch.setattr(CIFAR10, "test_list", [[FILES[5], md5[5]]])


def as_archive(folder, path, names=FILES):
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            tar.add(folder / "cifar-10-batches-py" / name, f"cifar-10-batches-py/{name}")
    return path


# ---- reading ----


def test_python2_writer_of_this_test_is_right():
    loaded = pickle.loads(as_python2(content()), encoding="latin1")
    assert loaded["labels"] == content()["labels"]
    assert np.array_equal(loaded["data"], content()["data"])


def test_images_and_labels_in_the_files_order(folder):
    source = cifar10(folder).load(True)
    assert source.inputs.shape == (100, 3, 32, 32)
    assert source.inputs.dtype == torch.uint8
    expected = np.concatenate([content(seed=s)["data"] for s in range(5)])
    assert np.array_equal(source.inputs.flatten(1).numpy(), expected)
    assert source.labels.tolist() == list(range(10)) * 10
    assert source.labels.dtype == torch.int64
    test = cifar10(folder).load(False)
    assert np.array_equal(test.inputs.flatten(1).numpy(), content(seed=5)["data"])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_files_of_every_pickle_protocol_can_be_read(protocol):
    written = io.BytesIO(pickle.dumps(content(), protocol=protocol))
    assert np.array_equal(DataUnpickler(written).load()["data"].pixels(), content()["data"])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_in_fortran_order_keep_their_pixels(protocol):
    written = io.BytesIO(pickle.dumps(np.asfortranarray(content()["data"]), protocol=protocol))
    assert np.array_equal(DataUnpickler(written).load().pixels(), content()["data"])


def test_root_may_be_the_folder_itself(folder):
    direct = cifar10(folder / "cifar-10-batches-py").load(True)
    assert direct.checksum() == cifar10(folder).load(True).checksum()
    (folder / "cifar-10-batches-py").rename(folder / "renamed")
    assert cifar10(folder / "renamed").load(True).checksum() == direct.checksum()


def test_the_whole_way_to_a_split(folder):
    data = cifar10(folder, num_labeled=20, num_validation=30, split_seed=0)
    data.setup()
    assert data.sets["labeled"].labels.bincount().tolist() == [2] * 10
    assert data.num_unlabeled == 70
    seen = data.view(data.sets["labeled"].__getitems__([0, 1]).inputs, ("weak",))
    assert seen.shape == (2, 3, 32, 32)
    assert -1 <= seen.min() < -0.9
    assert 0.9 < seen.max() <= 1


def test_weak_view_crops_and_mirrors():
    bar = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    bar[..., 5] = 255
    seen = Cifar10().view(bar, ("weak",))[:, 0, 0]
    left = (seen[:, :16] == 1).any(1)
    right = (seen[:, 16:] == 1).any(1)
    assert (left ^ right).all()
    assert 50 < left.sum() < 150


def test_normalisation():
    raw = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert Cifar10().view(raw, ()).flatten().tolist() == [1, 1, 1]
    seen = Cifar10(normalise_by="statistics").view(raw, ())
    assert seen[0, 2, 0, 0].item() == pytest.approx((1 - 0.44653091) / 0.26158784)


# ---- files that cannot be trusted ----


def test_md5_is_checked_unless_switched_off(folder, monkeypatch):
    message = refused(cifar10(folder, verify_checksum=True))
    assert "md5" in message
    assert "data_batch_1" in message
    assert "--data.verify_checksum false" in message
    official_md5(monkeypatch, folder)
    assert len(cifar10(folder, verify_checksum=True).load(True).labels) == 100
    damaged = folder / "cifar-10-batches-py" / "data_batch_3"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert "data_batch_3" in refused(cifar10(folder, verify_checksum=True))


class Calls:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def named(module, name, *arguments):
    """A pickle that calls module.name with strings."""
    strings = b"".join(b"X" + struct.pack("<I", len(a)) + a.encode() for a in arguments)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + strings + b"tR."


@pytest.mark.parametrize("place", ["whole", "labels", "data", "key"])
def test_malicious_pickle_is_refused_and_not_executed(folder, place):
    trap, harm = folder / "control", folder / "harm"
    pickle.loads(pickle.dumps(Calls(trap)))
    assert trap.is_dir()  # so the same pickle would work
    batch = {
        "whole": Calls(harm),
        "labels": content() | {"labels": Calls(harm)},
        "data": content() | {"data": Calls(harm)},
        "key": content() | {"more": [Calls(harm)]},
    }[place]
    (folder / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(batch))
    message = refused(cifar10(folder))
    assert "data_batch_2" in message
    assert "must not call posix.mkdir" in message or "must not call nt.mkdir" in message
    assert not harm.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("os", "system"),
        ("_codecs", "decode"),
        ("codecs", "encode"),
        ("numpy", "fromfile"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core._core.multiarray", "_reconstruct"),
        ("torch", "load"),
        ("ssl_weighting.data.files", "PickledArray"),
    ],
)
def test_other_names_are_refused(module, name):
    with pytest.raises(pickle.UnpicklingError, match="must not call"):
        DataUnpickler(io.BytesIO(named(module, name, "1"))).load()


def test_array_of_objects_is_refused(folder):
    batch = content() | {"data": np.array([["a", 1]], dtype=object)}
    (folder / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(batch))
    assert "not of bytes" in refused(cifar10(folder))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: as_python2(b)[:-30000], ""),
        (lambda b: b"", "EOFError"),
        (lambda b: b"<html>not found</html>", ""),
        (lambda b: pickle.dumps([1, 2]), "TypeError"),
        (lambda b: pickle.dumps({"data": b["data"]}), "KeyError: 'labels'"),
        (lambda b: pickle.dumps(b | {"data": b["data"][:, :3000]}), "(20, 3000)"),
        (lambda b: pickle.dumps(b | {"data": b["data"].reshape(20, 3, 1024)}), "(20, 3, 1024)"),
        (lambda b: pickle.dumps(b | {"data": b["data"].astype(np.int16)}), "not of bytes"),
        (lambda b: pickle.dumps(b | {"data": b["data"][:19]}), "19 images and 20 labels"),
        (lambda b: pickle.dumps(b | {"data": b["data"].tolist()}), "AttributeError"),
        (lambda b: pickle.dumps(b | {"labels": [*b["labels"][:-1], 10]}), "0 to 9"),
        (lambda b: pickle.dumps(b | {"labels": [*b["labels"][:-1], -1]}), "0 to 9"),
        (lambda b: pickle.dumps(b | {"labels": [*b["labels"][:-1], 1.5]}), "0 to 9"),
        (lambda b: as_python2(b).replace(b"M\x14\x00", b"M\x15\x00", 1), "ValueError"),
    ],
)
def test_damaged_file_is_refused(folder, damage, words):
    (folder / "cifar-10-batches-py" / "data_batch_4").write_bytes(damage(content()))
    message = refused(cifar10(folder))
    assert "data_batch_4 is not a whole CIFAR-10 batch file" in message
    assert words in message


# ---- files that are not there ----


def test_missing_folder_without_download(tmp_path):
    message = refused(cifar10(tmp_path / "nowhere"))
    assert "cifar-10-python.tar.gz" in message
    assert "--data.download true" in message


def test_incomplete_folder_is_left_alone(folder):
    (folder / "cifar-10-batches-py" / "data_batch_3").unlink()
    message = refused(cifar10(folder, download=True))
    assert "lacks data_batch_3" in message


def test_archive_beside_is_unpacked(folder, tmp_path):
    target = tmp_path / "other"
    target.mkdir()
    as_archive(folder, target / "cifar-10-python.tar.gz")
    assert "md5" in refused(cifar10(target, verify_checksum=True))
    assert cifar10(target).load(True).checksum() == cifar10(folder).load(True).checksum()
    assert sorted(p.name for p in target.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_archive_can_neither_leave_the_folder_nor_lack_a_file(folder, tmp_path):
    target = tmp_path / "deep" / "other"
    target.mkdir(parents=True)
    archive = as_archive(folder, target / "cifar-10-python.tar.gz", FILES[:-1])
    assert "test_batch" in refused(cifar10(target))
    assert not (target / "cifar-10-batches-py").exists()
    with tarfile.open(archive, "w:gz") as tar:
        for name in FILES:
            tar.add(folder / "cifar-10-batches-py" / name, f"cifar-10-batches-py/{name}")
        tar.add(folder / "cifar-10-batches-py" / "test_batch", "../escaped")
    cifar10(target).load(True)
    assert not (tmp_path / "deep" / "escaped").exists()
    assert sorted(p.name for p in (target / "cifar-10-batches-py").iterdir()) == sorted(FILES)


def test_damaged_archive_is_refused(folder, tmp_path):
    target = tmp_path / "other"
    target.mkdir()
    archive = as_archive(folder, target / "cifar-10-python.tar.gz")
    archive.write_bytes(archive.read_bytes()[:100_000])
    assert "cannot be unpacked" in refused(cifar10(target))
    assert [p.name for p in target.iterdir()] == ["cifar-10-python.tar.gz"]


def test_download(folder, tmp_path, monkeypatch, web):
    archive = as_archive(folder, web[0] / "served.tar.gz")
    monkeypatch.setattr(CIFAR10, "url", f"{web[1]}/served.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    official_md5(monkeypatch, folder)
    data = cifar10(tmp_path / "new" / "place", download=True, verify_checksum=True)
    data.prepare_data()
    assert data.load(True).checksum() == cifar10(folder).load(True).checksum()

    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    other = tmp_path / "third"
    message = refused(cifar10(other, download=True))
    assert "failed" in message
    assert list(other.iterdir()) == []


def test_failing_download_says_what_to_do(tmp_path, monkeypatch, web):
    monkeypatch.setattr(CIFAR10, "url", f"{web[1]}/nowhere.tar.gz")
    message = refused(cifar10(tmp_path / "data", download=True))
    assert "HTTPError: HTTP Error 404" in message
    assert f"put it at {tmp_path / 'data' / 'cifar-10-python.tar.gz'}" in message


# ---- the real thing ----


def test_real_images(real_cifar10):
    data = cifar10(real_cifar10, num_labeled=250, split_seed=0)
    data.setup()
    train, test = data.load(True), data.load(False)
    assert train.inputs.shape == (50_000, 3, 32, 32)
    assert test.inputs.shape == (10_000, 3, 32, 32)
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    # Pixels of the repacked set (96 images are not the official ones), in the official order.
    assert train.checksum().startswith("07b5f19492368f83")
    assert train.checksum() == data.split.checksum
    mean = train.inputs[::10].float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor(Cifar10(normalise_by="statistics").mean), atol=5e-3)


def test_real_split_has_equal_classes(real_cifar10):
    data = cifar10(real_cifar10, num_labeled=250, num_validation=1000, split_seed=0)
    data.setup("fit")
    assert data.sets["labeled"].labels.bincount().tolist() == [25] * 10
    assert data.sets["validation"].labels.bincount().tolist() == [100] * 10
    assert data.num_unlabeled == 49_000


def test_repacked_files_need_the_switch(real_cifar10):
    assert "--data.verify_checksum false" in refused(cifar10(real_cifar10, verify_checksum=True))
