import hashlib

import numpy as np
import pytest
import torch
from refusals import refused
from scipy.io import savemat
from torchvision.datasets import SVHN

from ssl_weighting.data import Svhn


def content(n, seed):
    random = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.uint8)[:, None] % 10 + 1  # 1 to 10, a column
    return {"X": random.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), "y": labels}


@pytest.fixture
def folder(tmp_path):
    for seed, (part, n) in enumerate((("train", 60), ("test", 20), ("extra", 40))):
        savemat(tmp_path / f"{part}_32x32.mat", content(n, seed), do_compression=True)
    return tmp_path


def svhn(root, **arguments):
    return Svhn(root=root, **({"download": False, "verify_checksum": False} | arguments))


def test_images_and_labels(folder):
    source = svhn(folder).load(True)
    original = content(60, 0)
    assert source.inputs.shape == (60, 3, 32, 32)
    assert source.inputs.dtype == torch.uint8
    assert source.inputs.is_contiguous()
    for n, c, h, w in [(0, 0, 0, 0), (7, 2, 3, 30), (59, 1, 31, 4)]:
        assert source.inputs[n, c, h, w] == original["X"][h, w, c, n]
    assert source.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 6
    assert svhn(folder).load(False).inputs.shape == (20, 3, 32, 32)


def test_extra_images_come_behind_the_training_ones(folder):
    plain, more = svhn(folder).load(True), svhn(folder, extra=True).load(True)
    assert more.inputs.shape == (100, 3, 32, 32)
    assert torch.equal(more.inputs[:60], plain.inputs)
    assert len(more.labels) == 100
    assert len(svhn(folder, extra=True).load(False).labels) == 20


def test_weak_view_does_not_mirror(folder):
    bar = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    bar[..., 5] = 255
    seen = svhn(folder).view(bar, ("weak",))
    assert (seen[..., 16:] == -1).all()
    assert (seen[..., :16] == 1).any(dim=-1).all()


def test_normalisation():
    raw = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    assert Svhn().view(raw, ()).flatten().tolist() == [1, 1, 1]
    seen = Svhn(normalise_by="statistics").view(raw, ())
    assert seen[0, 2, 0, 0].item() == pytest.approx((1 - 0.47280442) / 0.19703614)


def test_md5_is_checked_unless_switched_off(folder, monkeypatch):
    message = refused(svhn(folder, verify_checksum=True))
    assert "md5 e26dedcc434d2e4c54c9b2d4a06d8373" in message
    assert "--data.verify_checksum false" in message
    md5 = hashlib.md5((folder / "train_32x32.mat").read_bytes()).hexdigest()
    monkeypatch.setitem(SVHN.split_list, "train", ["", "train_32x32.mat", md5])
    assert len(svhn(folder, verify_checksum=True).load(True).labels) == 60


def test_missing_file_without_download(folder):
    (folder / "extra_32x32.mat").unlink()
    svhn(folder).load(True)
    message = refused(svhn(folder, extra=True))
    assert "extra_32x32.mat" in message
    assert "--data.download true" in message


def test_download_fetches_only_what_is_missing(folder, tmp_path, monkeypatch, web):
    target = tmp_path / "new" / "place"
    for part in ("train", "test", "extra"):
        source = folder / f"{part}_32x32.mat"
        md5 = hashlib.md5(source.read_bytes()).hexdigest()
        (web[0] / source.name).write_bytes(source.read_bytes())
        monkeypatch.setitem(SVHN.split_list, part, [f"{web[1]}/{source.name}", source.name, md5])
    data = svhn(target, download=True, verify_checksum=True)
    data.prepare_data()
    assert sorted(p.name for p in target.iterdir()) == ["test_32x32.mat", "train_32x32.mat"]
    (target / "test_32x32.mat").write_bytes(b"my own")
    data.prepare_data()
    assert (target / "test_32x32.mat").read_bytes() == b"my own"
    assert len(data.load(True).labels) == 60


def test_failing_download_says_what_to_do(tmp_path, monkeypatch, web):
    monkeypatch.setitem(SVHN.split_list, "train", [f"{web[1]}/nowhere", "train_32x32.mat", "0"])
    message = refused(svhn(tmp_path, download=True))
    assert "failed" in message
    assert f"put it at {tmp_path / 'train_32x32.mat'}" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:5000]), "not a whole SVHN file"),
        (lambda p: p.write_bytes(b""), "not a whole SVHN file"),
        (lambda p: p.write_bytes(b"<html>not found</html>" * 50), "not a whole SVHN file"),
        (lambda p: savemat(p, {"y": content(9, 0)["y"]}), "KeyError: 'X'"),
        (lambda p: savemat(p, content(9, 0) | {"X": np.zeros((32, 32, 9), np.uint8)}), "(32, 32, 3, n)"),
        (lambda p: savemat(p, content(9, 0) | {"X": np.zeros((28, 28, 3, 9), np.uint8)}), "(32, 32, 3, n)"),
        (lambda p: savemat(p, content(9, 0) | {"X": np.zeros((32, 32, 3, 9))}), "float64"),
        (lambda p: savemat(p, content(9, 0) | {"y": content(8, 0)["y"]}), "9 images and 8 labels"),
        (lambda p: savemat(p, content(9, 0) | {"y": content(9, 0)["y"] + 5}), "0 to 10"),
        (lambda p: savemat(p, content(9, 0) | {"y": np.full((9, 1), 1.5)}), "0 to 10"),
        (lambda p: savemat(p, content(9, 0) | {"y": np.array(["a"] * 9)}), "0 to 10"),
    ],
)
def test_damaged_file_is_refused(folder, damage, words):
    damage(folder / "train_32x32.mat")
    assert words in refused(svhn(folder))
