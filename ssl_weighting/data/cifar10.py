"""CIFAR-10."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torchvision.datasets import CIFAR10

from ssl_weighting.augment import RandomFlipCrop
from ssl_weighting.data.downloaded import DownloadedImages
from ssl_weighting.data.files import DataUnpickler, check_md5, download
from ssl_weighting.data.source import InMemory
from ssl_weighting.errors import UserError, one_line


class Cifar10(DownloadedImages):
    """CIFAR-10: 50,000 training and 10,000 test images of 32×32 pixels, 10 classes of equal size.

    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The files are torchvision's:
    the Python version of the archive from the author's site. They are pickles, and are read without running
    anything in them.

    Args:
        root: Folder that holds ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz``, or is the former.
        download: Download the archive if neither is there (163 MiB). What is there is never overwritten.
        kwargs: See :class:`~ssl_weighting.data.downloaded.DownloadedImages`.
    """

    name = "cifar10"
    all_class_names = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    augmentations = MappingProxyType({"weak": RandomFlipCrop(padding=4, flip=True)})
    statistics = ((0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784))

    def prepare_data(self) -> None:
        """Download on one process a node, before all of them load."""
        if self.download:
            self._folder()

    def load(self, train: bool) -> InMemory:
        """Read the batch files.

        Returns:
            Images uint8 (n, 3, 32, 32), labels int64 (n,), in the files' order.

        Raises:
            UserError: If files are missing, damaged or not CIFAR-10's.
        """
        folder = self._folder()
        images, labels = [], []
        for name, md5 in CIFAR10.train_list if train else CIFAR10.test_list:
            if self.verify_checksum:
                check_md5(folder / name, md5, self.root)
            batch_images, batch_labels = self._read(folder / name)
            images.append(batch_images)
            labels += batch_labels
        return InMemory(
            torch.from_numpy(np.concatenate(images)).view(-1, 3, 32, 32),
            torch.tensor(labels, dtype=torch.int64),
        )

    def _read(self, path: Path) -> tuple[np.ndarray, list[int]]:
        """Images uint8 (n, 3072) and labels of one file."""
        try:
            with open(path, "rb") as file:
                content = DataUnpickler(file).load()
            images, labels = content["data"].pixels(), content["labels"]
            if images.ndim != 2 or images.shape[1] != 3072:
                raise ValueError(f"its array has the shape {images.shape} instead of (n, 3072)")
            if len(labels) != len(images):
                raise ValueError(f"it holds {len(images)} images and {len(labels)} labels")
            if any(type(label) is not int or not 0 <= label <= 9 for label in labels):
                raise ValueError("not all labels are whole numbers from 0 to 9")
        except Exception as error:  # a damaged pickle can raise nearly anything
            raise UserError(
                f"data.root={self.root}: {path.name} is not a whole CIFAR-10 batch file ({one_line(error)}); "
                "delete it and get it again"
            ) from None
        return images, labels

    def _folder(self) -> Path:
        """The folder of the batch files, after download and unpacking if need be."""
        names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
        is_folder = self.root.name == CIFAR10.base_folder or (self.root / names[0]).is_file()
        folder = self.root if is_folder else self.root / CIFAR10.base_folder
        missing = [name for name in names if not (folder / name).is_file()]
        if not missing:
            return folder
        if len(missing) < len(names):
            raise UserError(
                f"data.root={self.root}: {folder} lacks {', '.join(missing)}; complete it, or delete it and "
                "set --data.download true"
            )
        archive = folder.parent / CIFAR10.filename
        if archive.is_file():
            if self.verify_checksum:
                check_md5(archive, CIFAR10.tgz_md5, self.root)
        elif self.download:
            download(CIFAR10.url, archive, CIFAR10.tgz_md5, self.root)
        else:
            raise UserError(
                f"data.root={self.root}: neither {CIFAR10.base_folder} nor {CIFAR10.filename} is there; put "
                "one of them there, name the folder that has them, or set --data.download true"
            )
        self._unpack(archive, folder, names)
        return folder

    def _unpack(self, archive: Path, folder: Path, names: list[str]) -> None:
        """Take the batch files, and nothing else, out of the archive: all of them or none."""
        try:
            with (
                tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent) as temporary,
                tarfile.open(archive) as tar,
            ):
                whole = Path(temporary) / folder.name
                whole.mkdir()
                for name in names:
                    member = tar.extractfile(f"{CIFAR10.base_folder}/{name}")
                    if member is None:
                        raise tarfile.TarError(f"{name} is not a file")
                    with member, open(whole / name, "wb") as file:
                        shutil.copyfileobj(member, file)
                try:
                    whole.replace(folder)
                except OSError:  # another process was faster
                    if not all((folder / name).is_file() for name in names):
                        raise
        except (OSError, EOFError, KeyError, tarfile.TarError) as error:
            raise UserError(
                f"data.root={self.root}: {archive} cannot be unpacked ({one_line(error)}); if it is damaged, "
                "delete it and get it again"
            ) from None
