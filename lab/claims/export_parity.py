"""What an exported model predicts, holds and takes, beside its run: every format, on the run's own examples.

    python -m lab.claims.export_parity RUN [RUN ...] [--count 500] [--rounds 3] [--formats safetensors torch onnx]

Each run is exported into a temporary folder as `ssl-weighting export` does, and read from there. Printed are the largest
difference of a probability on the first test examples (of a run without a test set, of the pool), sizes on the disk, and
examples a second of the process's own time in one thread, exported and by `ssl_weighting.load(RUN)`, the best of some
rounds in turn. Both are given the same: pixels, paths or texts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before the libraries below read them
    os.environ[_name] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402

from ssl_weighting.app.evaluate import Asked, Chosen, choose, opened  # noqa: E402
from ssl_weighting.app.portable.formats import FILES, need_onnx  # noqa: E402
from ssl_weighting.app.portable.model import PortableModel  # noqa: E402
from ssl_weighting.app.portable.writing import write_folder  # noqa: E402
from ssl_weighting.app.trained import restored  # noqa: E402
from ssl_weighting.data import SSLData  # noqa: E402
from ssl_weighting.data.images import Images  # noqa: E402
from ssl_weighting.data.text import TextData  # noqa: E402

HEADER = ("run", "network", "format", "examples", "max |Δp|", "MB", "a second", "by the run")


def examples_of(chosen: Chosen, count: int) -> Any:
    """Examples of a run as a person has them: paths, texts or arrays."""
    data: SSLData = chosen.model.data
    if isinstance(data, (Images, TextData)):
        return chosen.names(slice(0, count))
    return data.sets[chosen.part].raw(slice(0, count))


def fastest(rounds: int, *functions: Callable[[], Any]) -> list[float]:
    """Seconds of the process's own time that each function takes, the least of some rounds in turn."""
    found = np.full((rounds, len(functions)), np.inf)
    for times in found:
        for column, function in enumerate(functions):
            start = time.process_time()
            function()
            times[column] = time.process_time() - start
    return [float(seconds) for seconds in found.min(0)]


def in_one_thread() -> None:
    """Have onnxruntime compute in one thread: its others wait busily, which counts as time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    onnxruntime.InferenceSession = partial(onnxruntime.InferenceSession, sess_options=options)


def row(run: str, file_format: str, count: int, rounds: int) -> list[str]:
    """A row of the table, under :data:`HEADER`."""
    asked = Asked(run, {"device": "cpu"}, [])
    saved = opened(asked)
    own = choose(asked, saved)
    examples = examples_of(own, count)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        folder.mkdir()
        write_folder(folder, "model", saved, restored(saved, device="cpu")[0], file_format)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        portable = PortableModel(folder, "cpu")
        difference = np.abs(portable.probabilities(examples) - own.model.probabilities(examples)).max()
        ours, theirs = fastest(
            rounds, lambda: portable.probabilities(examples), lambda: own.model.probabilities(examples)
        )
    module = own.model.module
    backbone = module.model.backbone if module.encoder is None else module.encoder.backbone
    speeds = [f"{len(examples) / seconds:.0f}" for seconds in (ours, theirs)]
    size_said = f"{size / 1e6:.1f}"
    return [
        own.model.data.name,
        type(backbone).__name__,
        file_format,
        str(len(examples)),
        f"{difference:.0e}",
        size_said,
        *speeds,
    ]


def main() -> None:
    """Print the table, a row a run and format."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--count", type=int, default=500, metavar="N", help="examples of each run (500)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="timings of each (3)")
    parser.add_argument("--formats", nargs="+", default=[*FILES], choices=[*FILES])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "onnx" in options.formats:
        need_onnx("onnx", "onnxscript", "onnxruntime")
        in_one_thread()
    warnings.simplefilter("ignore")
    for cells in (HEADER, ["---"] * len(HEADER)):
        print(f"| {' | '.join(cells)} |")
    for run in options.runs:
        for file_format in options.formats:
            print(f"| {' | '.join(row(run, file_format, options.count, options.rounds))} |", flush=True)


if __name__ == "__main__":
    main()
