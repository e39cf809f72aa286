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

    start = time.monotonic()
    subprocess.run(command(options.config, root / "whole", overrides), check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - start
    print(f"the run left alone took {whole:.0f} s", flush=True)

    killed = 0
    runs = root / "killed"
    while True:
        resumed = any(runs.glob("*/*/checkpoints/last.ckpt"))
        process = subprocess.Popen(
            [*command(options.config, runs, overrides), *(["--ckpt_path", "last"] if resumed else [])],
            stdout=subprocess.DEVNULL,
        )
        if killed == options.kills:
            if process.wait():
                print("the last resume failed")
                return 1
            break
        wait = moments.uniform(0.2, 0.9) * whole
        try:
            status = process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            at = sorted(runs.glob("*/*/metrics.csv"))
            step = at[-1].read_text().splitlines()[-1].split(",")[0] if at else "before the first"
            print(f"kill {killed}: after {wait:.1f} s, last logged step {step}", flush=True)
            continue
        if status:
            print(f"a resumed run failed with status {status}")
            return 1
        break  # it finished before the moment came
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
