"""Throughput of training: the trainer's own loop on images of CIFAR-10's shape, against its floor and against peers.

A row is a loop's median, loops taking turns. ``step`` is a θ step on views that are ready, ``loop`` the whole of it with
its data path; ``floor`` the forward and backward passes of the images that the step must process, in the same precision.
Over all loops of ours the largest is told of: θ step with its views ÷ floor, share of the time that goes into waiting
for data and making views, and share of the training time that Λ takes with a Λ step every 100 θ steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table

from lab.speed.arguments import add_machine, check_counts
from lab.speed.floor import METHODS, run_passes
from lab.speed.loop import RandomImages
from lab.speed.peers import PEERS, PeerTask, kind_of
from lab.speed.timed import TimedModule, Watch
from lab.speed.timing import machine
from lab.speed.turns import Loop, Turn, Turns, take_turns
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.errors import UserError
from ssl_weighting.files import whole_file
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.module import SSLModule
from ssl_weighting.weighting import WeightingOptions

INNER_STEPS = 100
VARIANTS = ("plain", "apart", "compiled", "apart+compiled")
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        methods: SSL methods, names of ``METHODS``.
        precisions: Of ours; peers run in float32.
        variants: How ours run, of ``VARIANTS``.
        peers: Checkouts of peers' code by name, compared with FixMatch.
        labeled: |D'|.
        unlabeled: |U'|; ``None`` for the papers': 5 times ``labeled`` for UDA, 7 times for all others.
        depth: Of the Wide ResNet.
        width: Of the Wide ResNet.
        rounds: Turns of every loop that count.
        steps: θ steps of a turn.
        workers: Processes that fetch data.
        device: Where.
        threads: Of a CPU; 0 leaves PyTorch's choice.
        json: File for the results, or ``None``.
    """

    methods: tuple[str, ...] = ("fixmatch", "uda")
    precisions: tuple[str, ...] = PRECISIONS
    variants: tuple[str, ...] = ("plain",)
    peers: tuple[tuple[str, str], ...] = ()
    labeled: int = 64
    unlabeled: int | None = None
    depth: int = 28
    width: int = 2
    rounds: int = 5
    steps: int = 1
    workers: int = 0
    device: str = "cpu"
    threads: int = 0
    json: str | None = None

    def unlabeled_of(self, method: str) -> int:
        """|U'| of a method."""
        return self.unlabeled or self.labeled * (5 if method == "uda" else 7)


@dataclass(frozen=True)
class Row:
    """A line of the table, and of the file.

    Attributes:
        name: Loop and part of it.
        precision: In the words of Lightning's Trainer.
        seconds_per_step: Median.
        images_per_second: Views that the network was shown, in that time.
        peak_bytes: Largest memory of the process, on a GPU of what was allocated there.
    """

    name: str
    precision: str
    seconds_per_step: float
    images_per_second: float
    peak_bytes: int


@dataclass(frozen=True)
class Summary:
    """What is made of a loop's turns.

    Attributes:
        rows: Step, whole loop and floor.
        step_over_floor: θ step with its views ÷ floor; ``None`` for peers and compiled loops.
        wait_share: Of the whole loop, data and views.
        lambda_share: Of the training time, with a Λ step every 100 θ steps; ``None`` without Λ.
    """

    rows: tuple[Row, ...]
    step_over_floor: float | None
    wait_share: float
    lambda_share: float | None


def main(argv: list[str]) -> int:
    """Run ``python -m lab bench throughput`` with its options. Returns the exit status."""
    run(parse("python -m lab bench throughput", argv))
    return 0


def parse(program: str, argv: list[str]) -> Options:
    """Options from the command line.

    Args:
        program: What to call it in the help.
        argv: Arguments after the benchmark's name.

    Raises:
        UserError: For a value out of range.
    """
    parser = argparse.ArgumentParser(
        program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods", nargs="+", choices=[*METHODS, "all"], metavar="METHOD", help="default: fixmatch uda"
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="default: both")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, help="model.target_pass, model.compile; default: plain"
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"a checkout of {' or '.join(peer.url for peer in PEERS.values())}, float32, FixMatch",
    )
    parser.add_argument("--labeled", type=int, help="|D'|, default 64")
    parser.add_argument("--unlabeled", type=int, help="|U'|, default 7 |D'|, UDA 5 |D'|")
    parser.add_argument("--depth", type=int, help="of the Wide ResNet, default 28")
    parser.add_argument("--width", type=int, help="of the Wide ResNet, default 2")
    parser.add_argument("--rounds", type=int, help="turns of every loop, default 5")
    parser.add_argument("--steps", type=int, help="θ steps of a turn, default 1, on a GPU 20")
    parser.add_argument("--workers", type=int, help="processes that fetch data, default 0")
    add_machine(parser)
    parser.add_argument("--quick", action="store_true", help="small batches, two rounds: under a minute")
    given = vars(parser.parse_args(argv))
    peers = tuple(_peer(text) for text in given.pop("peer"))
    options = Options(device="cuda" if torch.cuda.is_available() else "cpu", peers=peers)
    if given.pop("quick"):
        options = replace(options, methods=("fixmatch",), labeled=4, rounds=2)
    chosen = {key: value for key, value in given.items() if value is not None}
    for key in ("methods", "precisions", "variants"):
        if key in chosen:
            chosen[key] = tuple(METHODS if "all" in chosen[key] else chosen[key])
    options = replace(options, **chosen)
    if "steps" not in chosen and torch.device(options.device).type == "cuda":
        options = replace(options, steps=20)
    _check(options)
    return options


def _peer(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"bench --peer={text}: must be NAME=PATH")
    if name in METHODS:
        raise UserError(f"bench --peer={text}: {name} is one of our own; choose another name")
    kind_of(Path(path))
    return name, str(Path(path).resolve())


def _check(options: Options) -> None:
    check_counts(options, "labeled", "unlabeled", "rounds", "steps")
    if options.peers and options.unlabeled_of("fixmatch") % options.labeled:
        raise UserError(
            f"bench --unlabeled={options.unlabeled}: peers take a multiple of --labeled={options.labeled}"
        )


def run(options: Options) -> list[Summary]:
    """Measure, print and save.

    Args:
        options: See :class:`Options`.

    Returns:
        What became of every loop: ours, then the peers.
    """
    summaries: list[Summary] = []
    for method in options.methods:
        images = options.labeled + len(METHODS[method].make().views) * options.unlabeled_of(method)
        loops = [
            Loop(_name(method, variant), precision, partial(_ours, options, method, variant, precision))
            for variant in options.variants
            for precision in options.precisions
        ]
        if method == "fixmatch":
            loops += [Loop(name, "32-true", _peer_loop(path, options)) for name, path in options.peers]
        turns = take_turns(loops, options.rounds, options.steps, options.device, options.threads)
        summaries += [_summary(loop, taken, images) for loop, taken in turns.items()]
    _report(summaries, options)
    return summaries


def _name(method: str, variant: str) -> str:
    return method if variant == "plain" else f"{method} ({variant})"


def _summary(loop: Loop, turns: Sequence[Turn], images: int) -> Summary:
    def median(of: Any) -> float:
        return float(statistics.median(of(turn) for turn in turns))

    def row(part: str, seconds: float, peak: int) -> Row:
        return Row(f"{loop.name}: {part}", loop.precision, seconds, images / seconds, peak)

    peak = max(turn.peak for turn in turns)
    whole = median(lambda turn: turn.loop)
    rows = [row("step", median(lambda turn: turn.loop - turn.data), peak), row("loop", whole, peak)]
    over_floor = lambda_share = None
    if all(turn.floor is not None for turn in turns):
        rows.append(
            row("floor", median(lambda turn: turn.floor), max(turn.floor_peak or 0 for turn in turns))
        )
        over_floor = median(lambda turn: (turn.loop - turn.fetch) / turn.floor)
    if all(turn.weights is not None for turn in turns):
        weights = median(lambda turn: turn.weights)
        lambda_share = weights / (weights + INNER_STEPS * whole)
    return Summary(tuple(rows), over_floor, median(lambda turn: turn.data / turn.loop), lambda_share)


def _report(summaries: Sequence[Summary], options: Options) -> None:
    sizes = (
        f"{options.labeled}/{'/'.join(dict.fromkeys(str(options.unlabeled_of(m)) for m in options.methods))}"
    )
    name = machine(options.device)
    title = f"WRN-{options.depth}-{options.width}, {sizes} images\n{name}"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))  # fits into 80 columns
    table.add_column("", no_wrap=True)
    for heading in ("", "step s", "loop s", "floor s", "images/s", "MiB", "÷ floor", "data %", "Λ %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        seconds = {row.name.rpartition(": ")[2]: row.seconds_per_step for row in summary.rows}
        whole = summary.rows[1]
        table.add_row(
            whole.name.rpartition(": ")[0],
            whole.precision.partition("-")[0],
            *(f"{seconds[part]:.3f}" if part in seconds else "" for part in ("step", "loop", "floor")),
            f"{whole.images_per_second:.0f}",
            f"{whole.peak_bytes / 2**20:.0f}",
            "" if summary.step_over_floor is None else f"{summary.step_over_floor:.2f}",
            f"{100 * summary.wait_share:.1f}",
            "" if summary.lambda_share is None else f"{100 * summary.lambda_share:.2f}",
        )
    Console().print(table)
    for line in _against_peers(summaries, [peer for peer, _ in options.peers]):
        print(line)
    if options.json:
        with whole_file(Path(options.json)) as partial_file:
            partial_file.write_text(json.dumps(as_json(summaries, name), indent=1) + "\n", encoding="utf-8")


def as_json(summaries: Sequence[Summary], machine_name: str) -> dict[str, Any]:
    """What ``--json`` writes: the largest ratio and shares of ours, and all rows."""
    ours = [summary for summary in summaries if summary.step_over_floor is not None]
    return {
        "machine": machine_name,
        "step_over_floor": max((s.step_over_floor for s in ours if s.step_over_floor), default=None),
        "wait_share": max((s.wait_share for s in ours), default=None),
        "lambda_share": max((s.lambda_share for s in ours if s.lambda_share), default=None),
        "rows": [asdict(row) for summary in summaries for row in summary.rows],
    }


def _against_peers(summaries: Sequence[Summary], peers: Sequence[str]) -> list[str]:
    """How many times as fast as a peer each loop of FixMatch is."""
    loops = {
        summary.rows[0].name.rpartition(": ")[0] + ", " + summary.rows[0].precision: summary.rows
        for summary in summaries
    }
    told = []
    for peer in peers:
        theirs = loops[f"{peer}, 32-true"]
        for name, ours in loops.items():
            if name.startswith(("fixmatch,", "fixmatch (")):
                step, loop = (
                    t.seconds_per_step / o.seconds_per_step for t, o in zip(theirs[:2], ours, strict=False)
                )
                told.append(f"{name}: step {step:.2f}, loop {loop:.2f} times as fast as {peer} in float32")
    return told


# ---- ours -------------------------------------------------------------------------------------------------


def _ours(options: Options, method: str, variant: str, precision: str, turns: Turns) -> None:
    """The trainer's own loop, a Λ step at the end of every turn."""
    seed_everything(0, verbose=False)
    model = TimedModule(
        10,
        WideResNet(options.depth, options.width),
        METHODS[method].make(),
        ExactLastLayer(damping=1e4),  # not every method's loss is convex; the cost does not depend on it
        weighting=WeightingOptions(inner_steps=options.steps),
        compile="compiled" in variant,
        target_pass="apart" if "apart" in variant else "joint",
    )
    model.turns = turns
    data = RandomImages(
        num_labeled=4000,
        labeled_batch_size=options.labeled,
        unlabeled_batch_size=options.unlabeled_of(method),
        validation_batch_size=4 * options.labeled,
        num_workers=options.workers,
    )
    trainer = bare_trainer(total_steps(options), turns.device.type, Watch(turns), precision=precision)
    if "compiled" not in variant:
        turns.after = partial(_measure_floor, options, method, variant, trainer, model, turns)
    trainer.fit(model, data)


def total_steps(options: Options) -> int:
    """More than the turns of a loop can take."""
    return (options.rounds + 2) * options.steps


def _measure_floor(
    options: Options, method: str, variant: str, trainer: Trainer, model: SSLModule, turns: Turns, turn: Turn
) -> None:
    passes = METHODS[method].passes(options.labeled, options.unlabeled_of(method), "apart" in variant)
    network, images = copy.deepcopy(model.model), passes.images(turns.device)
    torch.clear_autocast_cache()
    turns.reset_peak()
    began = turns.now()
    for _ in range(turns.steps):
        with trainer.precision_plugin.train_step_context():
            run_passes(network, passes, images)
    turn.floor, turn.floor_peak = (turns.now() - began) / turns.steps, turns.peak()


def _peer_loop(path: str, options: Options) -> Any:
    task = PeerTask(
        path,
        options.labeled,
        options.unlabeled_of("fixmatch"),
        options.depth,
        options.width,
        options.workers,
        total_steps(options),
    )
    return partial(kind_of(Path(path)).drive, task)
