"""TensorBoard by one line: ``--trainer.logger TensorBoard``."""

from __future__ import annotations

import importlib.util

from lightning.pytorch.loggers import TensorBoardLogger

from ssl_weighting.errors import UserError


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, writing into the run's folder unless told otherwise.

    Args:
        save_dir: Where to write; ``.`` is the run's folder.
        name: Sub-folder.

    Raises:
        UserError: If TensorBoard is not installed.
    """

    def __init__(self, save_dir: str = ".", name: str = "tensorboard") -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError(
                "trainer.logger=TensorBoard: tensorboard is not installed; pip install 'ssl-weighting[tensorboard]'"
            )
        super().__init__(save_dir, name=name, version="")
