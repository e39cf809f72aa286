"""The command ``ssl-weighting``.

Everything that needs torch is imported late, so that help and mistakes answer at once.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

from ssl_weighting.app.names import suggestion
from ssl_weighting.app.threads import use_free_cores, wait_asleep
from ssl_weighting.errors import LocalError, PeerError, UserError
from ssl_weighting.files import UNUSABLE


class Entry(NamedTuple):
    """A command.

    Attributes:
        usage: What is typed after its name.
        summary: What it does, in a line of help.
        main: Where ``main(argv)`` stands that returns the exit status, ``module`` or ``module:function``; empty for
            those of Lightning's command line.
        takes: What its first argument is, for completion: ``recipe``, ``run``, ``shell`` or nothing.
    """

    usage: str
    summary: str
    main: str = ""
    takes: Literal["recipe", "run", "shell", ""] = ""


COMMANDS = {
    "demo": Entry("", "about two minutes on real digits: what the weights do", "ssl_weighting.app.demo"),
    "init": Entry(
        "--images DIR --unlabelled DIR",
        "your own data (or --text FILE): writes a recipe and a split",
        "ssl_weighting.app.init",
    ),
    "recipes": Entry("", "list the recipes that come along", "ssl_weighting.app.recipes"),
    "fit": Entry("--config RECIPE", "train; add --key value to change anything", takes="recipe"),
    "weights": Entry("RUN --clean FILE", "which examples did harm", "ssl_weighting.app.weights", "run"),
    "report": Entry("RUN", "a page (fit writes it too)", "ssl_weighting.app.report", "run"),
    "resume": Entry("RUN", "go on with a run that was stopped, exactly", "ssl_weighting.app.resume", "run"),
    "refit": Entry(
        "RUN",
        "train again on all labels, with the weights that are learned",
        "ssl_weighting.app.refit",
        "run",
    ),
    "predict": Entry(
        "RUN --on FOLDER|TABLE",
        "classes of new examples, no labels needed",
        "ssl_weighting.app.evaluate:predict",
        "run",
    ),
    "embed": Entry(
        "RUN --on FOLDER|TABLE",
        "features of examples, as a table",
        "ssl_weighting.app.embed",
        "run",
    ),
    "export": Entry(
        "RUN --out FOLDER",
        "the model by itself: safetensors, ONNX or torch.export",
        "ssl_weighting.app.portable",
        "run",
    ),
    "test": Entry("RUN", "test error", "ssl_weighting.app.evaluate:test", "run"),
    "validate": Entry("RUN", "validation error", "ssl_weighting.app.evaluate:validate", "run"),
    "paraphrase": Entry("", "translated copies of texts, for UDA", "ssl_weighting.app.paraphrase"),
    "dashboard": Entry("", "a dashboard of W&B", "ssl_weighting.app.dashboard"),
    "completion": Entry("bash", "the shell's Tab key", "ssl_weighting.app.completion", "shell"),
}

CHANGED_MOST = """\
What people change most, each written as --key value after fit (`fit --help` lists all):
  --data.num_labeled N  --data.num_validation N     how many labels there are
  --data.root DIR                                   where the data lies
  --model.weighting.kind per_example|evidence|single|fixed    a weight each, by evidence, one for all, or none
  --model.weighting.inner_steps N  --model.weighting.lr η        how often and how far weights move
  --trainer.max_steps N  --seed_everything N  --runs DIR
"""


def overview() -> str:
    """What ``ssl-weighting --help`` says."""
    typed = {f"{name} {entry.usage}".rstrip(): entry.summary for name, entry in COMMANDS.items()}
    lines = [f"  {usage:45s} {summary}" for usage, summary in typed.items()]
    title = "ssl-weighting: semi-supervised learning with one learned weight for every unlabelled example"
    return "\n".join([title, "", *lines, "", CHANGED_MOST])


# Lightning's and torch's remarks that a user can do nothing about: why each is harmless here.
UNHELPFUL_WARNINGS = (
    r".*does not have many workers.*",  # batches are gathered from memory
    r".*LightningCLI's args parameter is intended.*",  # recipes' names were turned into paths
    r".*isinstance\(treespec, LeafSpec\).*",  # inside Lightning
    r".*in eval mode at the start of training.*",  # the moving average of the model
    r".*smaller than the logging interval.*",  # the last step is logged by the evaluation
    r".*your dataloader is not resumable.*",  # batches are a function of the step
    r".*torch\.jit\.script.*deprecated.*",  # inside torch
    r"Total length of `DataLoader` across ranks is zero.*",  # no label is kept aside
    r".*callbacks used to create the checkpoint.*",  # evaluation needs none of those that train
)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 after bad input (one line on stderr)."""
    arguments, parent = list(sys.argv[1:] if argv is None else argv), os.getppid()
    wait_asleep()
    warnings.showwarning = _show_warning
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # what cannot be reached is said once, by us
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # where it was imported before
    _show_anything()
    if os.getcwd() not in sys.path:  # an installed command, unlike python -m, does not look there
        sys.path.append(os.getcwd())
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(overview())
            return 0
        if arguments[0] == "--version":
            from ssl_weighting import __version__

            print(__version__)
            return 0
        return _run(arguments)
    except BrokenPipeError:  # `ssl-weighting recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python says so at its end
        return 128 + 13
    except KeyboardInterrupt:
        print("interrupted; ssl-weighting resume RUN goes on with a run", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except UserError as error:
        rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
        alone = rank == "1" and isinstance(error, PeerError) and _has_ended(parent)
        if rank == "0" or isinstance(error, LocalError) or alone:  # of several processes one speaks
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _has_ended(parent: int) -> bool:
    """Whether the process that started this one is gone. Its connections close some time before it is."""
    for _ in range(50):
        if os.getppid() != parent:
            return True
        time.sleep(0.1)
    return False


def _run(arguments: list[str]) -> int:
    """Run a command; returns its exit status."""
    name = arguments[0]
    if name not in COMMANDS:
        raise UserError(_no_such_command(name))
    if not COMMANDS[name].main:
        run_lightning(arguments)
        return 0
    if COMMANDS[name].takes == "run" and len(arguments) == 1:
        raise UserError(
            f"RUN: missing; type ssl-weighting {name} {COMMANDS[name].usage}, with the folder that fit printed"
        )
    module, _, function = COMMANDS[name].main.partition(":")
    command: Callable[[list[str]], int] = getattr(import_module(module), function or "main")
    return command(arguments[1:])


def _no_such_command(name: str) -> str:
    if name.startswith("-"):
        return f"{name}: a command comes first, such as `ssl-weighting fit {name} ...`; there are {', '.join(COMMANDS)}"
    return f"{name}: no such command; {suggestion(name, COMMANDS)}"


def _show_anything() -> None:
    """What a terminal cannot show, such as λ in Latin-1, is written as its code: it is no reason to stop."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """The program's own warnings are for the person at the keyboard: one line, without the place in the code."""
    ours = Path(filename).is_relative_to(Path(__file__).parents[1])
    text = f"warning: {' '.join(str(message).split())}\n"
    (file or sys.stderr).write(
        text if ours else warnings.formatwarning(message, category, filename, lineno, line)
    )


def run_lightning(argv: list[str]) -> Path | None:
    """``fit``. Returns the run's folder, if there is one."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for message in UNHELPFUL_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    use_free_cores()
    from ssl_weighting.app.run import run

    return run(argv)
