"""Λ's own part of a Λ step by the size of the pool: gather λ, influence algebra of the exact last layer, M-Adam.

320 unlabelled, 64 labelled and 256 validation examples, 10 classes, 128 features; the pools take turns.

    python -m lab.claims.lambda_by_pool [--sizes 100000 100000000] [--rounds 300] [--json FILE]

An example costs 12 bytes, so 10⁹ of them 12 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from lab.speed.timing import machine
from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.wide_resnet import WideResNet
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.terms import CROSS_ENTROPY, LossTerm, Objective
from ssl_weighting.weighting import ExampleWeights
from ssl_weighting.weighting.rules import make_rule


def lambda_part(sizes: list[int], rounds: int) -> list[dict[str, float]]:
    """For each |U|, in examples: Λ's own part and the update alone, medians in seconds."""
    torch.manual_seed(0)
    network = Classifier(WideResNet(), 10)

    def term(n: int, index: Tensor | None = None) -> LossTerm:
        features = torch.randn(n, 128).relu()
        logits = network.heads["classifier"](features).detach()
        return LossTerm(
            "t",
            None,
            features,
            logits,
            torch.eye(10)[torch.arange(n) % 10],
            CROSS_ENTROPY,
            torch.ones(n),
            index,
        )

    known, validation, solver = term(64), term(256), ExactLastLayer()
    weights = {n: ExampleWeights(n, make_rule("masked_adam", 0.01)) for n in sizes}
    for w in weights.values():  # touch all memory once, so that page faults are not counted
        w.column("moments").fill_(0.0)
        w.column("values").fill_(1.0)
    update: dict[int, list[float]] = {n: [] for n in sizes}
    whole: dict[int, list[float]] = {n: [] for n in sizes}
    for number in range(rounds):
        for n in sizes:
            index = torch.randint(0, n, (320,))
            gradient = torch.randn(320)
            if number % 10 == 0:
                guessed = term(320, index)
                start = time.perf_counter()
                objective = Objective([known, guessed], [None, weights[n].gather(index)])
                weights[n].step(index, solver(network, objective, validation)[0])
                whole[n].append(time.perf_counter() - start)
            else:
                start = time.perf_counter()
                weights[n].gather(index)
                weights[n].step(index, gradient)
                update[n].append(time.perf_counter() - start)
    return [
        {
            "examples": n,
            "lambda_part_seconds": statistics.median(whole[n]),
            "update_alone_seconds": statistics.median(update[n]),
        }
        for n in sizes
    ]


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**8])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = lambda_part(options.sizes, options.rounds)
    for row in rows:
        print(
            f"{row['examples']:13,} examples: Λ's part {1e3 * row['lambda_part_seconds']:.1f} ms, "
            f"the update alone {1e3 * row['update_alone_seconds']:.3f} ms"
        )
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": machine("cpu"), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
