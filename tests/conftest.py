"""Fixtures that several test folders need."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

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
