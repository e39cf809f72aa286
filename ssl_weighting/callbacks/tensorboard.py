"""TensorBoard by one line: ``--trainer.logger TensorBoard``."""

from __future__ import annotations

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, writing into the run's folder unless told otherwise.

    Args:
        save_dir: Where to write; ``.`` is the run's folder.
        name: Sub-folder.
    """

    def __init__(self, save_dir: str = ".", name: str = "tensorboard") -> None:
        super().__init__(save_dir, name=name, version="")
