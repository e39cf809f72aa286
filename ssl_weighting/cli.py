"""The command ``ssl-weighting``.

Everything that needs torch is imported late, so that help and mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TextIO

from ssl_weighting.errors import LocalError, PeerError, UserError
from ssl_weighting.threads import use_free_cores, wait_asleep

HELP = """\
ssl-weighting: semi-supervised learning with one learned weight for every unlabelled example

  ssl-weighting demo                                   three minutes on real digits: what the weights do
  ssl-weighting init --images DIR --unlabelled DIR     your own data (or --text FILE): writes a recipe and a split
  ssl-weighting fit --config digits_uda                train (recipes by name or path; add --key value to change any)
  ssl-weighting weights RUN --clean FILE               which examples did harm; the pool without them
  ssl-weighting predict --ckpt_path RUN/checkpoints/last.ckpt   class probabilities, as parquet

Also: fit --config RECIPE --ckpt_path last (go on with a stopped run); test, validate; report RUN (a page, which fit
writes too), report RUN ... --out DIR (tables); recipes (list); study (a grid of runs); bench (speed); paraphrase (for
UDA); dashboard (of W&B); completion bash; fit --help (every option); fit --model.algorithm.help=UDA (one class).

What people change most:
  --data.num_labeled N  --data.num_validation N     how many labels there are
  --data.root DIR                                   where the data lies
  --model.weighting per_example|single|fixed        learn a weight each, one for all, or none
  --model.inner_steps N  --model.weight_lr η        how often and how far weights move
  --trainer.max_steps N  --seed_everything N  --runs DIR
"""


# Commands that are not Lightning's: the module whose `main(argv)` returns the exit status.
COMMANDS = {
    "init": "ssl_weighting.init",
    "recipes": "ssl_weighting.recipes",
    "demo": "ssl_weighting.demo",
    "bench": "ssl_weighting.bench",
    "paraphrase": "ssl_weighting.paraphrase",
    "study": "ssl_weighting.study",
    "weights": "ssl_weighting.export",
    "report": "ssl_weighting.report",
    "dashboard": "ssl_weighting.dashboard",
    "completion": "ssl_weighting.completion",
}

# Lightning's and torch's remarks that a user can do nothing about: why each is harmless here.
UNHELPFUL_WARNINGS = (
    r".*does not have many workers.*",  # batches are gathered from memory
    r".*LightningCLI's args parameter is intended.*",  # recipes' names were turned into paths
    r".*isinstance\(treespec, LeafSpec\).*",  # inside Lightning
    r".*in eval mode at the start of training.*",  # the moving average of the model
    r".*smaller than the logging interval.*",  # the last step is logged by the evaluation
    r".*your dataloader is not resumable.*",  # batches are a function of the step
    r".*torch\.jit\.script.*deprecated.*",  # inside torch
    r".*callbacks used to create the checkpoint.*",  # evaluation needs none of those that train
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 after bad input (one line on stderr)."""
    arguments, parent = list(sys.argv[1:] if argv is None else argv), os.getppid()
    wait_asleep()
    warnings.showwarning = _show_warning
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(HELP)
            return 0
        if arguments[0] == "--version":
            from ssl_weighting import __version__

            print(__version__)
            return 0
        if arguments[0] in COMMANDS:
            command: Callable[[list[str]], int] = import_module(COMMANDS[arguments[0]]).main
            return command(arguments[1:])
        run_lightning(arguments)
        return 0
    except BrokenPipeError:  # `ssl-weighting recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python says so at its end
        return 128 + 13
    except KeyboardInterrupt:
        print("interrupted; the same command with --ckpt_path last goes on", file=sys.stderr)
        return 130
    except UserError as error:
        rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
        bereft = rank == "1" and isinstance(error, PeerError) and os.getppid() != parent
        if rank == "0" or isinstance(error, LocalError) or bereft:  # of several processes one speaks
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """The program's own warnings are for the person at the keyboard: one line, without the place in the code."""
    ours = Path(filename).is_relative_to(Path(__file__).parent)
    text = f"warning: {' '.join(str(message).split())}\n"
    (file or sys.stderr).write(
        text if ours else warnings.formatwarning(message, category, filename, lineno, line)
    )


def run_lightning(argv: list[str]) -> Path | None:
    """fit, validate, test or predict. Returns the run's folder, if there is one."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for message in UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    threads = use_free_cores()
    if argv[:1] == ["fit"] and os.environ.get("LOCAL_RANK", "0") == "0":
        print(
            f"computing with {threads} thread{'s' * (threads != 1)}, by the cores that are free to use",
            flush=True,
        )
    from ssl_weighting.run import run

    return run(argv)
