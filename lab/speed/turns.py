"""Training loops that take turns, each in a process of its own: what is compared has the machine to itself.

A loop calls :meth:`Turns.step` where a step begins and :meth:`Turns.arrived` when its data is there. A
process runs a turn when it is told to and then stands still; so a drift of the machine's speed hits all alike,
modules of the same name do not meet, and each has a memory of its own.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from lab.speed.loop import quiet
from lab.speed.timing import high_water, reset_high_water
from ssl_weighting.errors import UserError


class Over(BaseException):
    """Ends a loop that knows no end; not an :class:`Exception`, so that it is not caught on the way."""


@dataclass
class Turn:
    """What a turn took, seconds a step.

    Attributes:
        loop: The whole of a step, from the first wait for data to the next; without ``weights``.
        data: Of it, waiting for data and making views.
        fetch: Of ``data``, waiting for data alone.
        weights: A Λ step, where one was made.
        floor: The passes that a step needs and nothing else, where that was measured.
        peak: Largest memory during the turn, bytes: resident, on a GPU allocated.
        floor_peak: The same during ``floor``.
    """

    loop: float = 0.0
    data: float = 0.0
    fetch: float = 0.0
    weights: float | None = None
    floor: float | None = None
    peak: int = 0
    floor_peak: int | None = None


class _Span(NamedTuple):
    kind: str
    begun: Any
    ended: Any


@dataclass
class Turns:
    """A loop's side: its clock and its stop sign.

    Args:
        pipe: To the process that says whose turn it is.
        device: Where the loop computes.
        steps: Steps of a turn.
        after: Run after every turn, outside its time: for what is measured besides.
    """

    pipe: Any
    device: torch.device
    steps: int
    after: Callable[[Turn], None] | None = None
    _count: int = 0
    _over: bool = False
    _began: float = 0.0
    _step_began: float = 0.0
    _spans: list[_Span] = field(default_factory=list)

    def step(self) -> None:
        """A step begins: ends the turn before it if that is over, and waits for the next.

        Raises:
            Over: If there is none.
        """
        if self._count % self.steps == 0 and not self._over:
            if self._count:
                turn = self._turn()
                if self.after is not None:
                    self.after(turn)
                self.pipe.send(turn)
            try:
                self._over = not self.pipe.recv()
            except EOFError:  # nobody is there any more
                self._over = True
            self.reset_peak()
            self._began = self.now()
        if self._over:  # each time: some loops try again, whatever is raised
            raise Over
        self._count += 1
        self._step_began = time.perf_counter()

    def arrived(self) -> None:
        """The data of the step is there."""
        self._spans.append(_Span("fetch", self._step_began, time.perf_counter()))

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Time of a kind: ``views`` or ``weights``."""
        begun = self._mark(kind)
        yield
        self._spans.append(_Span(kind, begun, self._mark(kind)))

    def now(self) -> float:
        """Seconds, when all that was asked for is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def reset_peak(self) -> None:
        """Forget the largest memory so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_high_water()

    def peak(self) -> int:
        """The largest memory since, bytes."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else high_water()

    def _mark(self, kind: str) -> Any:
        """A moment: of the device's own time for views, so that nothing waits for them."""
        if self.device.type != "cuda" or kind == "weights":
            return self.now()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _turn(self) -> Turn:
        loop = self.now() - self._began
        seconds: dict[str, list[float]] = {"fetch": [], "views": [], "weights": []}
        for kind, begun, ended in self._spans:
            took = ended - begun if isinstance(begun, float) else begun.elapsed_time(ended) / 1000
            seconds[kind].append(took)
        self._spans.clear()
        fetch, views, weights = (sum(took) for took in seconds.values())
        return Turn(
            (loop - weights) / self.steps,
            (fetch + views) / self.steps,
            fetch / self.steps,
            weights or None,
            peak=self.peak(),
        )


@dataclass(frozen=True)
class Loop:
    """One that takes part.

    Attributes:
        name: What the table calls it.
        precision: In the words of Lightning's Trainer.
        run: Runs it until :class:`Over`; a function of a module, or a partial of one, for another process.
    """

    name: str
    precision: str
    run: Callable[[Turns], None]


def take_turns(
    loops: Sequence[Loop], rounds: int, steps: int, device: str, threads: int
) -> dict[Loop, list[Turn]]:
    """Run the loops round by round, one at a time. The first round is not counted.

    Args:
        loops: Who takes part.
        rounds: Rounds that count.
        steps: Steps of a turn.
        device: Where.
        threads: Of a CPU; 0 leaves PyTorch's choice.

    Raises:
        UserError: If one fails; with its name and the reason.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lab.speed.throughput"])
    turns: dict[Loop, list[Turn]] = {loop: [] for loop in loops}
    started: list[tuple[Loop, Any, Any]] = []
    try:
        for loop in loops:
            ours, theirs = context.Pipe()
            process = context.Process(target=_take_part, args=(theirs, loop, steps, device, threads))
            process.start()
            theirs.close()
            started.append((loop, ours, process))
        for number in range(rounds + 1):
            for loop, pipe, _ in started:
                with contextlib.suppress(OSError):  # it has ended, and said why
                    pipe.send(True)
                turn = _received(loop, pipe)
                if number:
                    turns[loop].append(turn)
        for _, pipe, _ in started:
            pipe.send(False)
    finally:
        for _, pipe, process in started:
            pipe.close()
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
    return turns


def _received(loop: Loop, pipe: Any) -> Turn:
    try:
        said = pipe.recv()
    except EOFError:
        raise UserError(
            f"bench: {loop.name} was killed, perhaps for memory; choose smaller batches"
        ) from None
    if isinstance(said, Turn):
        return said
    raise UserError(f"bench: {loop.name} ended: {said}")


def _take_part(pipe: Any, loop: Loop, steps: int, device: str, threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)
    quiet()
    said = "its loop came to an end"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            loop.run(Turns(pipe, torch.device(device), steps))
    except Over:
        return
    except Exception as error:  # whatever a peer's code does has to be told
        said = f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        pipe.send(said)
