"""What the benchmarks share: options, networks and batches, clocks, memory, the table and the JSON file.

Time: all rows of a run take turns, round by round, so that a busy moment hits them alike; medians are
reported. Memory on a CPU: the growth of the resident set's high-water mark during one call in a fresh
process, from a fork server that has done no arithmetic. On CUDA: ``max_memory_allocated`` beyond what was
allocated before the call.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lab.speed.arguments import add_machine, check_counts
from ssl_weighting.backbones.base import Backbone, Classifier
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.protocols import Inputs
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm, Objective

TINY_BERT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
}
NETWORKS = ("wrn-28-2", "wrn-10-1", "bert-base", "bert-tiny")


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        network: One of ``NETWORKS``.
        labeled: |D'|.
        unlabeled: |U'|.
        validation: |V'|.
        rounds: How often every row is timed.
        patience: Seconds; a call that takes longer is timed once.
        device: Where.
        threads: Of a CPU; 0 leaves PyTorch's choice.
        float64_examples: How many examples the error is taken over.
        memory: Whether to measure memory.
        json: File for the results, or ``None``.
    """

    network: str = "wrn-28-2"
    labeled: int = 64
    unlabeled: int = 320
    validation: int = 256
    rounds: int = 5
    patience: float = 15.0
    device: str = "cpu"
    threads: int = 0
    float64_examples: int = 16
    memory: bool = True
    json: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: Method or engine.
        scope: Parameters that count as trainable.
        seconds: Median.
        ratio: ``seconds`` over the reference's.
        peak_bytes: Memory beyond what was held before, or ``None`` if not measured.
        max_relative_error: Largest deviation from float64 over the largest value, or ``None``.
    """

    name: str
    scope: str
    seconds: float
    ratio: float
    peak_bytes: int | None
    max_relative_error: float | None


def parse(program: str, description: str, argv: list[str]) -> Options:
    """Options from the command line.

    Args:
        program: What to call it in the help.
        description: What it does.
        argv: Arguments after the benchmark's name.

    Raises:
        UserError: For a value out of range.
    """
    parser = argparse.ArgumentParser(program, description=description)
    parser.add_argument("--network", choices=NETWORKS, help="default: wrn-28-2")
    parser.add_argument("--labeled", type=int, help="|D'|, default 64 (BERT: 8)")
    parser.add_argument("--unlabeled", type=int, help="|U'|, default 320 (BERT: 32)")
    parser.add_argument("--validation", type=int, help="|V'|, default 256 (BERT: 20)")
    parser.add_argument("--rounds", type=int, help="times every row is timed, default 5")
    add_machine(parser)
    parser.add_argument(
        "--quick", action="store_true", help="a small net and batch, three rounds: under a minute"
    )
    given = vars(parser.parse_args(argv))
    quick = given.pop("quick")
    chosen = {key: value for key, value in given.items() if value is not None}
    options = Options(device="cuda" if torch.cuda.is_available() else "cpu")
    if quick:
        options = replace(
            options,
            network="wrn-10-1",
            labeled=16,
            unlabeled=64,
            validation=32,
            rounds=3,
            patience=0.8,
            float64_examples=4,
        )
    if chosen.get("network", "").startswith("bert"):
        options = replace(options, labeled=8, unlabeled=32, validation=20, rounds=3, float64_examples=2)
    options = replace(options, **chosen)
    check_counts(options, "labeled", "unlabeled", "validation", "rounds")
    return options


class Setup(NamedTuple):
    """A network in evaluation mode, and random batches for it."""

    network: Classifier
    labeled: Inputs
    unlabeled: Inputs
    validation: Inputs


def set_up(options: Options, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Setup:
    """The same network and batches every time, with batch norm that does something."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = Classifier(_backbone(options.network), 10).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    batches = [_inputs(options.network, n) for n in (options.labeled, options.unlabeled, options.validation)]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network.to(options.device, dtype)
    if channels_last:
        network.to(memory_format=torch.channels_last)

    def place(leaf: Tensor) -> Tensor:
        leaf = leaf.to(options.device)
        if leaf.is_floating_point():
            leaf = leaf.to(dtype)
        return leaf.contiguous(memory_format=layout) if leaf.dim() == 4 else leaf

    return Setup(network, *(pytree.tree_map(place, batch) for batch in batches))


def _backbone(name: str) -> Backbone:
    if name.startswith("wrn"):
        _, depth, width = name.split("-")
        return WideResNet(int(depth), int(width))
    return Bert(tiny=name == "bert-tiny")


def _inputs(network: str, n: int) -> Inputs:
    if network.startswith("wrn"):
        return torch.randn(n, 3, 32, 32)
    return {"input_ids": torch.randint(1000, (n, 16 if network == "bert-tiny" else 128))}


class Bert(Backbone):
    """BERT from Hugging Face with random weights, its pooled output for features; eager attention.

    Args:
        tiny: Two layers of 64 units instead of twelve of 768.
    """

    last_block = r"bert\.encoder\.layer\.(?:1|11)\.|bert\.pooler\."

    def __init__(self, tiny: bool) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel  # slow to import

        sizes = TINY_BERT if tiny else {}
        self.bert = BertModel(BertConfig(attn_implementation="eager", **sizes))
        self.feature_dim = self.bert.config.hidden_size

    def forward(self, inputs: Inputs) -> Tensor:
        """Features (B, hidden size) of token ids (B, L)."""
        return cast(Tensor, self.bert(input_ids=inputs["input_ids"]).pooler_output)


def terms(setup: Setup) -> tuple[Objective, LossTerm]:
    """L(D', U') and L(V') at the present θ, targets drawn at random but always alike; no graph."""
    made = []
    for seed, (name, inputs) in enumerate(
        (("supervised", setup.labeled), ("unlabelled", setup.unlabeled), ("validation", setup.validation))
    ):
        with torch.no_grad():
            _, features, logits, *_ = setup.network(inputs)
        generator = torch.Generator().manual_seed(seed)
        target = torch.randn(logits.shape, generator=generator).mul(3).softmax(-1).to(logits)
        index = torch.arange(len(logits), device=logits.device) if name == "unlabelled" else None
        mask = torch.ones_like(logits[:, 0])
        made.append(LossTerm(name, inputs, features, logits, target, CROSS_ENTROPY, mask, index))
    return Objective(made[:2], [None, None]), made[2]


def forward_backward(network: nn.Module, inputs: Inputs) -> None:
    """The reference: one batch forward and backward, gradients of all parameters."""
    network.zero_grad(set_to_none=True)
    logits = network(inputs)[2]
    labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
    torch.autograd.backward(F.cross_entropy(logits, labels))
    network.zero_grad(set_to_none=True)


def medians(calls: Mapping[str, Callable[[], object]], options: Options) -> dict[str, float]:
    """Median seconds of every call, taking turns. The first turn of each is not counted.

    A call that tries the patience is timed once: by its first turn if that took so long that what a first turn
    does besides can be neglected, else by its second.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    long = {name: _clock(call, options) for name, call in calls.items()}
    for name, call in calls.items():
        if options.patience <= long[name] < 4 * options.patience:
            long[name] = _clock(call, options)
    for _ in range(options.rounds):
        for name, call in calls.items():
            if long[name] < options.patience:
                seconds[name].append(_clock(call, options))
    return {name: statistics.median(times or [long[name]]) for name, times in seconds.items()}


def _clock(call: Callable[[], object], options: Options) -> float:
    cuda = torch.device(options.device).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


Call = Callable[[], object]
MakeCalls = Callable[[Options], Mapping[str, Callable[[], Call]]]
"""Gives, by name, what builds a call: network and batches are made when they are needed."""


def peaks(make: MakeCalls, names: list[str], options: Options) -> dict[str, int | None]:
    """Peak memory of every call in bytes; see the module.

    Args:
        make: Says what there is to build; a function of a module, so that a fresh process finds it.
        names: Which of them.
        options: What ``make`` takes.
    """
    if not options.memory:
        return dict.fromkeys(names)
    if torch.device(options.device).type == "cuda":
        builders = make(options)
        return {name: _cuda_peak(builders[name]()) for name in names}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", make.__module__])
    found: dict[str, int | None] = {}
    for name in names:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_report_peak, args=(theirs, make, name, options))
        process.start()
        theirs.close()
        try:
            found[name] = ours.recv()
        except EOFError:
            found[name] = None
        process.join()
    return found


def _cuda_peak(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _report_peak(pipe: Any, make: MakeCalls, name: str, options: Options) -> None:
    call = make(options)[name]()
    before = reset_high_water()
    call()
    pipe.send(high_water() - before)
    pipe.close()


def reset_high_water() -> int:
    """Forget the largest resident memory, where the system can; and what it is now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return high_water()


def high_water() -> int:
    """Bytes that the process held at most, since :func:`reset_high_water`."""
    return _status("VmHWM")


def resident() -> int:
    """Bytes that the process holds; where the system does not tell, the most it ever held."""
    return _status("VmRSS")


def own_memory() -> int:
    """Bytes of the process that are not a file's; see :func:`resident`."""
    return _status("RssAnon")


def _status(field: str) -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Max |value − truth| / max |truth|."""
    value, truth = value.double().cpu(), truth.double().cpu()
    return float((value - truth).abs().max() / truth.abs().max())


def machine(device: str) -> str:
    """The machine, in words."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = named[0].partition(":")[2].strip() if named else model
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{model}, {torch.get_num_threads()} threads of {os.cpu_count()}, torch {torch.__version__}{load}"


def say_missing(peers: Iterable[str]) -> None:
    """One line on the rivals that have no row, for they are not installed."""
    if missing := [peer for peer in peers if importlib.util.find_spec(peer) is None]:
        print(f"no row of {', '.join(missing)}: not installed; pip install --editable '.[peers]'")


def report(title: str, rows: list[Row], reference_seconds: float, options: Options) -> None:
    """Print the table, and write the JSON file if one is asked for."""
    table = Table(title=f"{title}\n{machine(options.device)}")
    for heading in ("", "scope"):
        table.add_column(heading)
    for heading in ("seconds", "ratio", "peak MiB", "error"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            row.scope,
            f"{row.seconds:.3f}",
            f"{row.ratio:.2f}",
            "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
            "" if row.max_relative_error is None else f"{row.max_relative_error:.0e}",
        )
    Console().print(table)
    if options.json:
        result = {
            "machine": machine(options.device),
            "options": asdict(options),
            "reference_seconds": reference_seconds,
            "rows": [asdict(row) for row in rows],
        }
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
