"""Fixtures that several test folders need."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from made_up import VISION, paint, write_bert, write_imdb, write_vision
from scipy.io import savemat

CIFAR10_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout, or where SSL_WEIGHTING_SHARED points."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SSL_WEIGHTING_SHARED", default))
    if not (folder / "data" / "unpack").is_file():
        pytest.skip("no real data: neither SSL_WEIGHTING_SHARED nor ../shared holds data/unpack")
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of two layers and a vocabulary of letters and some words."""
    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random image encoders of two layers, each in the folder of its name."""
    folder = tmp_path_factory.mktemp("vision")
    for kind in VISION:
        write_vision(folder / kind, kind)
    return folder


@pytest.fixture(scope="session")
def tiny_imdb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made-up reviews in IMDB's layout: 40 to train, 20 to test, 30 unsupervised, 10 of them short."""
    folder = tmp_path_factory.mktemp("imdb")
    write_imdb(folder)
    return folder


@pytest.fixture(scope="session")
def real_cifar10(shared: Path) -> Path:
    """A folder that holds CIFAR-10 as ``cifar-10-batches-py``, to be read with ``verify_checksum=False``.

    Unpacked once, and kept outside pytest's own folders for the next session.
    """
    manifest = shared / "data" / "cifar10" / "manifest.json"
    if not manifest.is_file():
        pytest.skip(f"no real CIFAR-10 in {manifest.parent}")
    version = hashlib.sha256(manifest.read_bytes()).hexdigest()[:12]
    target = Path(tempfile.gettempdir()) / "ssl_weighting_real_data" / version

    def complete() -> bool:
        return all((target / "cifar-10-batches-py" / name).is_file() for name in CIFAR10_FILES)

    if not complete():
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
        subprocess.run([sys.executable, shared / "data" / "unpack", fresh, "cifar10"], check=True)
        try:
            fresh.replace(target)
        except OSError:  # another worker was faster
            shutil.rmtree(fresh)
    assert complete()
    return target


@pytest.fixture(scope="session")
def image_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CIFAR-10 and SVHN in their own formats, of random pixels and a hundred images a file."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    (root / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = generator.integers(0, 256, (100, 3072), dtype=np.uint8)
        batch = {"batch_label": name, "labels": [i % 10 for i in range(100)], "data": pixels, "filenames": []}
        with open(root / "cifar-10-batches-py" / name, "wb") as file:
            pickle.dump(batch, file, protocol=2)
    for part in ("train", "test", "extra"):
        pixels = generator.integers(0, 256, (32, 32, 3, 100), dtype=np.uint8)
        savemat(
            root / f"{part}_32x32.mat",
            {"X": pixels, "y": (np.arange(100) % 10 + 1)[:, None].astype(np.uint8)},
        )
    return root


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bert_copy(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy of ``tiny_bert`` that may be changed."""
    return shutil.copytree(tiny_bert, tmp_path / "bert")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Pictures: ``labelled``, two classes of six, and ``pool``, eight without a label."""
    for c, name in enumerate("ab"):
        for i in range(6):
            paint(tmp_path / "labelled" / name / f"{i}.png", 10 * c + i)
    for i in range(8):
        paint(tmp_path / "pool" / f"{i}.png", 100 + i)
    return tmp_path


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which this machine serves it by HTTP."""
    folder = tmp_path_factory.mktemp("web")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of nine steps on digits, which kept labels aside. Copy it before changing it."""
    from ssl_weighting.app.cli import main

    runs = tmp_path_factory.mktemp("runs")
    options = {
        "trainer.max_steps": 9,
        "trainer.val_check_interval": 3,
        "trainer.log_every_n_steps": 3,
        "trainer.accelerator": "cpu",
        "model.weighting.inner_steps": 1,
        "model.weighting.warmup_steps": 1,
        "model.weighting.update_masked": "true",
        "data.unlabeled_batch_size": 16,
        "data.num_labeled": 20,
        "data.labeled_batch_size": 20,
        "data.num_validation": 150,
        "data.evaluate_test": "false",
    }
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    assert main(["fit", "--config", "digits_uda", "--runs", str(runs), *flags]) == 0
    (run,) = (runs / "digits_uda").iterdir()
    return run
