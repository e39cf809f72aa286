"""θ steps of UDA on texts against a plain `transformers` training loop on the same reviews, in turn.

    python -m lab.claims.text_steps --root DIR --encoder FOLDER [--steps 5] [--json FILE]
    python -m lab.claims.text_steps --root DIR --encoder FOLDER --device cuda --random base --length 512

The plain loop is written as one would without this project: `AutoModelForSequenceClassification`, each batch padded by
the tokenizer to its longest text, UDA's three batches joined and padded to the longest, one forward and one backward
pass, torch's AdamW, gradients clipped. `equal work` runs the targets without a graph, as the project does; `as UDA's
code` has them in the joint pass. Both have their texts tokenised and their words replaced beforehand; the project's step
is the trainer's own and does all that within its time. Tokens are those of the reviews, padding not counted. On a CPU,
time is the process's own in one thread, which other loads on the machine change little. `--random base` takes a random
encoder of BERT-base's size with the tokenizer of FOLDER. Also printed: what the Λ step takes, the share of padding
with and without groups of equal length, memory on a GPU, and how long the recipe of 10,000 steps would take.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from lab.speed.loop import quiet
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.backbones.transformer import Transformer, buckets
from ssl_weighting.data.imdb import Imdb
from ssl_weighting.influence import ExactLastLayer
from ssl_weighting.modes import evaluation_mode
from ssl_weighting.module import SSLModule
from ssl_weighting.theta import ThetaOptions
from ssl_weighting.weighting import WeightingOptions

STEPS = 10_000
INNER_STEPS = 5
WARMUP = 1000


def now(device: str) -> float:
    """Seconds: of the process on a CPU, of the clock on a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Plain:
    """A training step of UDA as one writes it with ``transformers``."""

    def __init__(self, encoder: str, device: str, precision: torch.dtype | None) -> None:
        from transformers import AutoModelForSequenceClassification

        self.model = (
            AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2).to(device).train()
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-5)
        self.device, self.precision = device, precision

    def step(self, known: dict, labels: Tensor, plain: dict, strong: dict, apart: bool) -> None:
        """One step; ``apart``: targets without a graph."""
        with torch.autocast(self.device, dtype=self.precision, enabled=self.precision is not None):
            if apart:
                logits = self.model(**padded_together(known, strong)).logits
                with torch.no_grad():
                    target = self.model(**plain).logits.softmax(-1)
                guess = logits[len(labels) :]
            else:
                logits = self.model(**padded_together(known, plain, strong)).logits
                before, guess = logits[len(labels) :].chunk(2)
                target = before.detach().softmax(-1)
            loss = torch.nn.functional.cross_entropy(logits[: len(labels)], labels)
            loss = loss + torch.nn.functional.kl_div(guess.log_softmax(-1), target, reduction="batchmean")
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def padded_together(*batches: dict[str, Tensor]) -> dict[str, Tensor]:
    """Several tokenised batches as one, padded to the longest."""
    longest = max(b["input_ids"].shape[1] for b in batches)
    return {
        name: torch.cat([torch.nn.functional.pad(b[name], (0, longest - b[name].shape[1])) for b in batches])
        for name in ("input_ids", "attention_mask")
    }


class Watch(Callback):
    """Times the trainer's θ steps, and after each the plain loop's on the same reviews; then the Λ step."""

    def __init__(self, plain: Plain, device: str) -> None:
        self.plain, self.device = plain, device
        self.seconds: dict[str, list[float]] = {
            "ours": [],
            "equal work": [],
            "as UDA's code": [],
            "Λ step": [],
        }
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.grouped: list[int] = []
        self.memory = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the watch."""
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        if batch_idx == 0:
            self.fresh = iter(trainer.datamodule.influence_batches(0))  # type: ignore[attr-defined]
        self.began = now(self.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it; make the plain loop's steps and a Λ step."""
        self.seconds["ours"].append(now(self.device) - self.began)
        if self.device != "cpu":
            self.memory = max(self.memory, torch.cuda.max_memory_allocated() / 2**30)
        known, unlabeled = batch["labeled"], batch["unlabeled"]
        views = [pl_module._view(known.inputs, ("weak",))]
        views += [pl_module._view(unlabeled.inputs, steps) for steps in (("weak",), ("tf_idf", "weak"))]
        lengths = torch.cat([v["attention_mask"].sum(1) for v in views]).cpu()
        self.tokens.append(int(lengths.sum()))
        self.positions.append(len(lengths) * int(lengths.max()))
        self.grouped.append(self._positions(views))
        for name, apart in (("equal work", True), ("as UDA's code", False)):
            began = now(self.device)
            self.plain.step(views[0], known.labels, views[1], views[2], apart)
            self.seconds[name].append(now(self.device) - began)
        began = now(self.device)
        fresh = next(self.fresh)[0]
        fresh = trainer.strategy.batch_to_device(fresh, pl_module.device)
        with trainer.precision_plugin.train_step_context(), evaluation_mode(pl_module.model), torch.no_grad():
            validation = pl_module.views.validation_term(pl_module.model, fresh["validation"], ())
            pl_module.weight_step(pl_module.objective(fresh), validation)
        self.seconds["Λ step"].append(now(self.device) - began)

    def _positions(self, views: list[dict[str, Tensor]]) -> int:
        """Padded positions of the project's passes: labelled and strong together, targets apart, in groups."""
        total = 0
        for part in ((views[0], views[2]), (views[1],)):
            lengths = torch.cat([v["attention_mask"].sum(1) for v in part]).sort().values.cpu().numpy()
            start = 0
            for size in buckets(lengths, 4):
                total += size * int(lengths[start + size - 1])
                start += size
        return total


def random_encoder(tokenizer_folder: str, size: str, folder: str, length: int) -> str:
    """A folder with a random BERT and the tokenizer of another."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    layers, width = {"base": (12, 768), "tiny": (2, 64)}[size]
    config = BertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64,
        intermediate_size=4 * width, max_position_embeddings=max(512, length),
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(options: argparse.Namespace, encoder: str) -> dict[str, Any]:
    """All figures."""
    device = options.device
    precision = None if options.precision == "32" else torch.bfloat16
    seed_everything(0)
    data = Imdb(
        root=options.root,
        tokenizer=encoder,
        max_length=options.length,
        labeled_batch_size=options.labeled,
        unlabeled_batch_size=options.unlabeled,
        validation_batch_size=20,
    )
    data.setup("fit")
    module = SSLModule(
        2,
        Transformer(encoder),
        UDA(threshold=None, temperature=1, strong=["tf_idf"]),
        influence=ExactLastLayer(),
        weighting=WeightingOptions(warmup_steps=STEPS),  # the watch makes the Λ steps
        theta=ThetaOptions(
            lambda p: torch.optim.AdamW(p, lr=2e-5), schedule="linear", clip_norm=1.0, ema_decay=0
        ),
    )
    watch = Watch(Plain(encoder, device, precision), device)
    mixed = "32-true" if precision is None else "bf16-mixed"
    bare_trainer(options.steps + 1, device, watch, precision=mixed).fit(module, data)
    median = {
        name: statistics.median(values[1:]) for name, values in watch.seconds.items()
    }  # the first warms up
    tokens = statistics.median(watch.tokens[1:])
    hours = (STEPS * median["ours"] + (STEPS - WARMUP) / INNER_STEPS * median["Λ step"]) / 3600
    return {
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "tokens_per_second": {
            name: round(tokens / value) for name, value in median.items() if name != "Λ step"
        },
        "against_equal_work": round(median["equal work"] / median["ours"], 3),
        "against_uda_code": round(median["as UDA's code"] / median["ours"], 3),
        "padding_together": round(1 - sum(watch.tokens) / sum(watch.positions), 4),
        "padding_in_groups": round(1 - sum(watch.tokens) / sum(watch.grouped), 4),
        "gib_of_gpu_memory": round(watch.memory, 2),
        "hours_of_10000_steps": round(hours, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--random", choices=["base", "tiny"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "32"])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--labeled", type=int, default=8)
    parser.add_argument("--unlabeled", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    quiet()
    if options.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        encoder = options.encoder
        if options.random:
            encoder = random_encoder(options.encoder, options.random, folder, options.length)
        result = measure(options, encoder)
    device = "CPU, 1 thread" if options.device == "cpu" else torch.cuda.get_device_name()
    settings = {k: v for k, v in vars(options).items() if k not in ("json", "root", "encoder")}
    record = {
        "device": device,
        "torch": torch.__version__,
        "load_average": os.getloadavg(),
        **settings,
        **result,
    }
    print(json.dumps(record, indent=1))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
