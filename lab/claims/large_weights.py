"""What a Λ step and its checkpoint cost with up to 10⁹ unlabelled examples, their state in a file.

python -m lab.claims.large_weights [--sizes 100000,10000000,1000000000] [--folder DIR] [--json FILE]

One "step" is what the loop asks of Λ in one θ step and one Λ step of UDA's batch: λ of 320 examples, the record of
320, M-Adam on 320, the record of those. Batches are random rows, so that nearly every row lies on a page of its own. The
file is sparse; ``--fill`` writes all of it first (36 bytes an example), so that pages come from the disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ssl_weighting.weighting import ExampleStats, ExampleWeights
from ssl_weighting.weighting.row_file import HEADER, RowFile
from ssl_weighting.weighting.rules import make_rule
from ssl_weighting.weighting.stats import Predictions
from ssl_weighting.weighting.weighting import row_defaults

BATCH, BETWEEN = 320, 200


def fill(path: Path, size: int) -> None:
    """Write every row of the file once."""
    width = len(row_defaults(1.0)) + 1
    block = np.concatenate((row_defaults(1.0).numpy(), [1.0])).astype(np.float32)[None].repeat(2**20, 0)
    with open(path, "rb+") as file:
        file.seek(HEADER)
        for start in range(0, size, 2**20):
            file.write(block[: size - start].data)
    assert path.stat().st_size == HEADER + size * width * 4


def measure(size: int, steps: int, folder: Path, filled: bool, storage: str) -> dict[str, float | int | str]:
    """Median seconds of a step, and of a checkpoint of the rows of ``BETWEEN`` steps."""
    path = folder / "weights.rows"
    began = time.perf_counter()
    file = RowFile(path, size, row_defaults(1.0)) if storage == "disk" else None
    if filled and file is not None:
        fill(path, size)
    made = time.perf_counter() - began
    weights = ExampleWeights(size, make_rule("masked_adam", 0.01), file=file)
    record = ExampleStats(size, file=file)
    generator = torch.Generator().manual_seed(0)
    times, cpu, saves = [], [], []
    for step in range(1, steps + 1):
        seen, index = torch.randint(size, (2, BATCH), generator=generator)
        gradient, target = torch.randn(BATCH, generator=generator), torch.rand(BATCH, 10, generator=generator)
        began, busy = time.perf_counter(), time.process_time()
        weights.gather(seen)
        record.update_predictions([Predictions(seen, target, None)])
        weights.gather(index)
        weights.step(index, gradient)
        record.update_influences(index, gradient)
        times.append(time.perf_counter() - began)
        cpu.append(time.process_time() - busy)
        if step % BETWEEN == 0 and file is not None:
            began = time.perf_counter()
            file.journal(step)
            file.settle(step)
            saves.append(time.perf_counter() - began)
    room = path.stat().st_blocks * 512 if file is not None else 0
    path.unlink(missing_ok=True)
    return {
        "examples": size,
        "storage": storage,
        "filled": filled,
        "seconds_to_make": round(made, 3),
        "seconds_per_step": statistics.median(times[10:]),
        "cpu_seconds_per_step": statistics.median(cpu[10:]),
        "seconds_per_step_p95": statistics.quantiles(times[10:], n=20)[-1],
        "seconds_per_checkpoint": statistics.median(saves) if saves else 0.0,
        "bytes_on_disk": room,
        "bytes_of_the_file": HEADER + size * 36 if file is not None else 0,
    }


def main() -> int:
    """Measure every size; prints a row each."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="100000,10000000,1000000000")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--fill", action="store_true")
    parser.add_argument("--memory", action="store_true", help="also in memory, where 28 bytes an example fit")
    parser.add_argument("--folder", type=Path, help="where the file goes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in map(int, options.sizes.split(",")):
        for storage in ("disk", *(("memory",) if options.memory and size <= 10**8 else ())):
            folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="large_weights_"))
            rows.append(measure(size, options.steps, folder, options.fill, storage))
            shutil.rmtree(folder)
            print(rows[-1], flush=True)
    mapped = [float(row["cpu_seconds_per_step"]) for row in rows if row["storage"] == "disk"]
    print(f"a step with the most examples against one with the fewest: {mapped[-1] / mapped[0]:.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
