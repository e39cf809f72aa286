"""Kill runs with SIGKILL at random moments, resume them each time, and compare with a run that was left alone.

python -m lab.claims.kill_and_resume --recipe demo --kills 40 [--recipe cifar10_uda --kills 20 ...] [--workers 2]
    [--devices 2] [--json FILE] [--folder DIR] [-- --any.override value]

For every recipe: one run to the end, then runs that are killed (every process and data worker of them) and go on by
``--ckpt_path last``, again and again until the kills are used up. Killed or not, all must end with the same checkpoint,
bit for bit, and the same metrics. Moments are uniform over the time that a run takes, its start included. A run that
ends before its moment comes counts as compared, not as killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils import _pytree as pytree

from ssl_weighting.app.recipes import find_recipe, read_recipe

RECIPE_OVERRIDES = {  # so short that a hundred of them fit into an hour
    "demo": "--trainer.max_steps 60 --trainer.val_check_interval 25 --model.weighting.warmup_steps 5",
    "cifar10_uda": "--trainer.max_steps 24 --trainer.val_check_interval 10 --model.weighting.warmup_steps 3 "
    "--model.weighting.inner_steps 2 --model.backbone SmallConvNet --model.backbone.channels [8,8] "
    "--data.unlabeled_batch_size 16 --data.labeled_batch_size 8 --data.num_validation 64 --data.validation_batch_size 32 "
    "--model.weighting.update_masked true",
    "imdb_uda_small": "--trainer.max_steps 16 --trainer.val_check_interval 8 --model.weighting.warmup_steps 3 "
    "--model.weighting.inner_steps 2 --data.labeled_batch_size 4 --data.unlabeled_batch_size 8 --data.max_length 64 "
    "--model.weighting.update_masked true",
}


def command(recipe: str, runs: Path, overrides: list[str]) -> list[str]:
    """The command that trains."""
    return [sys.executable, "-m", "ssl_weighting", "fit", "--config", recipe, "--runs", str(runs), *overrides]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start it as a group of processes of its own, so that all of them can be killed at once."""
    with open(log, "ab") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=file, start_new_session=True)


def outcome(runs: Path) -> tuple[Path, dict[str, Any]]:
    """The one run in a folder, and its last checkpoint."""
    (checkpoint,) = runs.glob("*/*/checkpoints/last.ckpt")
    return checkpoint.parents[1], torch.load(checkpoint, weights_only=True)


def differences(one: Path, other: Path) -> list[str]:
    """What of two finished runs is not the same: entries of the checkpoint, metrics, files."""
    (folder, a), (again, b) = outcome(one), outcome(other)
    found = []
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        x, y = (pytree.tree_flatten_with_path(state[part])[0] for state in (a, b))
        for (path, first), (_, second) in zip(x, y, strict=True):
            tensors = isinstance(first, torch.Tensor)
            same = torch.equal(first.nan_to_num(), second.nan_to_num()) if tensors else first == second
            if not same:
                found.append(part + pytree.keystr(path))
    if (folder / "metrics.csv").read_bytes() != (again / "metrics.csv").read_bytes():
        found.append("metrics.csv")
    names = [
        sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) for run in (folder, again)
    ]
    found += sorted({*names[0]} ^ {*names[1]})
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to every process of the run at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def trial(
    recipe: str, kills: int, overrides: list[str], root: Path, moments: random.Random
) -> dict[str, Any]:
    """Kill one recipe's runs; returns the counts. What was done before is kept in ``counts.json`` and gone on with."""
    root.mkdir(parents=True, exist_ok=True)
    kept, log = root / "counts.json", root / "log"
    counts: dict[str, Any] = {
        "recipe": Path(recipe).stem,
        "kills": 0,
        "resumes": 0,
        "failed": 0,
        "ended": 0,
        "different": [],
    }
    if kept.exists():
        counts = json.loads(kept.read_text())
    whole = root / "whole"
    if "seconds" not in counts:
        shutil.rmtree(whole, ignore_errors=True)
        began = time.monotonic()
        if start(command(recipe, whole, overrides), log).wait():
            raise SystemExit(f"{recipe}: the run left alone failed; see {log}")
        counts["seconds"] = round(time.monotonic() - began, 1)
        kept.write_text(json.dumps(counts))
    killed = root / f"killed{counts['ended'] + counts['failed']}"
    while counts["kills"] < kills or any(killed.glob("*/*/checkpoints/last.ckpt")):
        resumed = any(killed.glob("*/*/checkpoints/last.ckpt"))
        process = start(
            [*command(recipe, killed, overrides), *(["--ckpt_path", "last"] if resumed else [])], log
        )
        counts["resumes"] += resumed
        try:
            left = moments.uniform(0.2, 1.1) * counts["seconds"] if counts["kills"] < kills else None
            status = process.wait(left)
        except subprocess.TimeoutExpired:
            kill(process)
            counts["kills"] += 1
        else:
            if status:
                counts["failed"] += 1
                print(f"{recipe}: a run ended with status {status}; see {log}", flush=True)
            else:
                found = differences(whole, killed)
                counts["different"] += found
                counts["ended"] += 1
                if not found:
                    shutil.rmtree(killed)
            killed = root / f"killed{counts['ended'] + counts['failed']}"
        kept.write_text(json.dumps(counts))
        print(counts, flush=True)
    return counts


def main() -> int:
    """Kill, resume, compare; returns 1 if anything failed or differs."""
    argv = sys.argv[1:]
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", action="append", required=True)
    parser.add_argument("--kills", action="append", type=int, required=True, help="one for each recipe")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of an earlier call, to go on with it")
    parser.add_argument("--json", type=Path, help="add the counts to the list in this file")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    given = argv[argv.index("--") + 1 :] if "--" in argv else []
    given += ["--trainer.accelerator", "cpu", "--data.num_workers", str(options.workers)]
    given += ["--checkpoint.every_steps", "4", "--trainer.log_every_n_steps", "5"]
    if options.devices > 1:
        given += ["--trainer.strategy", "ddp", "--trainer.devices", str(options.devices)]
    root = options.folder or Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    print(f"folder: {root}", flush=True)
    moments = random.Random(options.seed + time.time_ns() if options.folder else options.seed)
    results = []
    root.mkdir(parents=True, exist_ok=True)
    for recipe, kills in zip(options.recipe, options.kills, strict=True):
        kept = root / f"{recipe}.yaml"  # as it is now, should the recipe change meanwhile
        if not kept.exists():
            kept.write_text(
                yaml.safe_dump(read_recipe(find_recipe(recipe)), sort_keys=False), encoding="utf-8"
            )
        overrides = [*RECIPE_OVERRIDES.get(recipe, "").split(), *given]
        folder = root / f"{recipe}_{options.devices}x{options.workers}"
        results.append(trial(str(kept), kills, overrides, folder, moments))
        results[-1] |= {"devices": options.devices, "workers": options.workers}
    if options.json:
        before = json.loads(options.json.read_text()) if options.json.exists() else []
        options.json.write_text(json.dumps(before + results, indent=1) + "\n")
    return int(any(r["failed"] or r["different"] for r in results))


if __name__ == "__main__":
    sys.exit(main())
