"""Speed, side by side in one run: the paper's Section 4.4, and the training loop against its floor and peers."""

from __future__ import annotations

from collections.abc import Callable

from lab.speed import features, influence, memory, per_example_gradient, throughput

BENCHMARKS: dict[str, Callable[[list[str]], int]] = {
    "influence": influence.main,
    "per-example-gradient": per_example_gradient.main,
    "throughput": throughput.main,
    "memory": memory.main,
    "features": features.main,
}


def main(argv: list[str]) -> int:
    """Run the benchmark that the first argument names; the others are its options.

    Returns:
        The exit status: 0, or 2 with a line of usage where there is no such benchmark.
    """
    if argv and argv[0] in BENCHMARKS:
        return BENCHMARKS[argv[0]](argv[1:])
    print(f"usage: python -m lab bench {{{','.join(BENCHMARKS)}}} [--quick] [--json FILE] [--help]")
    return 0 if argv in (["-h"], ["--help"]) else 2
