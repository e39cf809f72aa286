"""Kill a run with SIGKILL at random moments, resume it each time, and compare with a run that was left alone.

python benchmarks/kill_and_resume.py [--kills 10] [--config digits_uda] [--runs DIR] [-- --any.override value]
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


def command(config: str, runs: Path, overrides: list[str]) -> list[str]:
    """The command that trains."""
    return [sys.executable, "-m", "ssl_weighting", "fit", "--config", config, "--runs", str(runs), *overrides]


def wait_for_training(process: subprocess.Popen[bytes], runs: Path, since: float) -> float:
    """Wait until the run has written the checkpoint that training starts with; returns when that was."""
    while process.poll() is None:
        written = [path.stat().st_mtime for path in runs.glob("*/*/metrics.csv")] + [
            path.stat().st_mtime for path in runs.glob("*/*/checkpoints/last.ckpt")
        ]
        if written and max(written) > since and any(runs.glob("*/*/checkpoints/last.ckpt")):
            return time.time()
        time.sleep(0.02)
    return time.time()


def main() -> int:
    """Kill, resume, compare; returns 1 if anything differs."""
    argv = sys.argv[1:]
    overrides = argv[argv.index("--") + 1 :] if "--" in argv else []
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--config", default="digits_uda")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    root = options.runs or Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    moments = random.Random(options.seed)

    whole = root / "whole"
    process = subprocess.Popen(command(options.config, whole, overrides), stdout=subprocess.DEVNULL)
    wait_for_training(process, whole, 0.0)
    start = time.monotonic()
    if process.wait():
        print("the run left alone failed")
        return 1
    seconds = time.monotonic() - start
    print(f"the run left alone trained for {seconds:.0f} s", flush=True)

    killed, started = 0, 0.0
    runs = root / "killed"
    while True:
        more = ["--ckpt_path", "last"] if started else []
        process = subprocess.Popen(
            [*command(options.config, runs, overrides), *more], stdout=subprocess.DEVNULL
        )
        if killed == options.kills:
            break
        started = wait_for_training(process, runs, started)
        wait = moments.uniform(0, 1.5 * seconds / options.kills)
        try:
            process.wait(wait)
            break  # it finished before the moment came
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        killed += 1
        step = next(runs.glob("*/*/metrics.csv")).read_text().splitlines()[-1].split(",")[0]
        print(f"kill {killed}: {wait:.1f} s after training went on, last logged step {step}", flush=True)
    if process.wait():
        print("the last resume failed")
        return 1
    first, second = (next((root / name).glob("*/*/checkpoints/last.ckpt")) for name in ("whole", "killed"))
    a, b = (torch.load(path, weights_only=True)["state_dict"] for path in (first, second))
    different = [
        k
        for k, v in a.items()
        if isinstance(v, torch.Tensor) and not torch.equal(v.nan_to_num(), b[k].nan_to_num())
    ]
    same_metrics = (
        first.parents[1].joinpath("metrics.csv").read_text()
        == second.parents[1].joinpath("metrics.csv").read_text()
    )
    print(
        f"{killed} kills; θ, EMA, Λ and record: {different or 'bit-identical'}; "
        f"metrics.csv {'identical' if same_metrics else 'different'}"
    )
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
