"""IMDB with 20 and 100 labels and nothing else: MiniLM's last layer trained along, and SetFit.

    python -m lab.claims.text_rivals --imdb DIR --encoder DIR [--seeds 10-12] [--out text_rivals.csv] [--jobs 1]

Labels and test reviews are those of `lab.claims.frozen_texts`, seed by seed, whose probe is on frozen features.
Unfrozen: as the recipe imdb_uda_small trains (four of six layers, the last of them and a new head learn, 200 steps of
20 reviews), with the labels alone. Fourth: a probe on these four layers as they are. SetFit: pairs of labelled reviews,
as its package trains by default, one epoch, at most --pairs-steps steps; its package is no dependency (`pip install
--no-deps --target FOLDER setfit sentence-transformers evaluate`, FOLDER in PYTHONPATH). Seconds are of the processor,
training alone.
"""

from __future__ import annotations

import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lab.embedded_texts import LENGTH, TEST, TRAIN, Texts, fast, features_of, reviews
from lab.frozen import draw_rows, seeds_of
from lab.grid import Row, grid_options, make_rows
from ssl_weighting.backbones.transformer import Transformer
from ssl_weighting.data.tokens import load_tokenizer
from ssl_weighting.probe import fit_probe
from ssl_weighting.schedules import make_schedule

LABELS = (10, 50)
KEY = ("method", "labels", "seed")
STEPS, SIZE = 200, 20


def labelled(train: Texts, labels: int, seed: int) -> Texts:
    """The labelled reviews of a seed of `frozen_texts`."""
    texts, classes = train
    order = np.random.default_rng(seed).permutation(len(classes))
    rows = order[draw_rows(classes[order], 2, labels, 0, 0)[0]]
    return [texts[row] for row in rows], classes[rows]


def fourth(known: Texts, options: Namespace, seed: int) -> Callable[[list[str]], np.ndarray]:
    """The labels-only probe on the same four layers, frozen, standardised by the labelled reviews."""
    encoder = Transformer(options.encoder, dropout=0, pooling="mean", layers=4, frozen=True).eval()
    tokenizer = load_tokenizer(options.encoder)
    features = features_of(known[0], encoder, tokenizer)
    centre, deviation = features.mean(0), features.std(0)
    fitted = fit_probe((features - centre) / deviation, known[1])

    def predict(texts: list[str]) -> np.ndarray:
        found = (features_of(texts, encoder, tokenizer) - centre) / deviation
        return np.asarray(fitted.probabilities(found).argmax(1))

    return predict


class Classifier(nn.Module):
    """An encoder with a head; logits (B, 2).

    Args:
        encoder: Folder of the encoder.
    """

    def __init__(self, encoder: str) -> None:
        super().__init__()
        self.backbone = Transformer(encoder, pooling="mean", layers=4, frozen_layers=3)
        self.head = nn.Linear(self.backbone.feature_dim, 2)
        self.feature_dim = 2
        self.backbone.initialise_head(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Any) -> torch.Tensor:
        """Logits of token batches."""
        logits: torch.Tensor = self.head(self.backbone(inputs))
        return logits


def unfrozen(known: Texts, options: Namespace, seed: int) -> Callable[[list[str]], np.ndarray]:
    """The last of four layers and a head, trained on the labelled reviews as imdb_uda_small's θ is."""
    torch.manual_seed(seed)
    model, tokenizer = Classifier(options.encoder), load_tokenizer(options.encoder)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))  # type: ignore[no-untyped-call]
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, weight_decay=0.01, eps=1e-6)
    schedule = make_schedule(optimizer, "linear", STEPS, 20)
    tokenizer.truncation_side = "left"
    ids = tokenizer(known[0], truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    labels, order = torch.from_numpy(known[1]), torch.empty(0, dtype=torch.long)
    for _ in range(STEPS):
        order = order if len(order) else torch.randperm(len(labels))
        rows, order = order[:SIZE], order[SIZE:]
        with fast():
            logits = model({name: ids[name][rows] for name in ("input_ids", "attention_mask")})
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.float(), labels[rows]).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
    final: Any = average.module.eval()
    return lambda texts: np.asarray(features_of(texts, final, tokenizer).argmax(1))


def setfit(known: Texts, options: Namespace, seed: int) -> Callable[[list[str]], np.ndarray]:
    """SetFit with the same encoder, and scikit-learn's logistic regression on what it has become."""
    package, sentences = import_module("setfit"), import_module("sentence_transformers")
    body = sentences.SentenceTransformer(options.encoder, device="cpu")
    body.max_seq_length = LENGTH
    body.tokenizer.truncation_side = "left"
    head = import_module("sklearn.linear_model").LogisticRegression()
    model = package.SetFitModel(model_body=body, model_head=head)
    data = import_module("datasets").Dataset.from_dict({"text": known[0], "label": known[1].tolist()})
    arguments = package.TrainingArguments(
        output_dir="/tmp/setfit_runs", batch_size=16, num_epochs=1, max_steps=options.pairs_steps, seed=seed,
        report_to="none", save_strategy="no", logging_strategy="no", show_progress_bar=False,
    )  # fmt: skip
    with fast():
        package.Trainer(model=model, args=arguments, train_dataset=data).train()

    def predict(texts: list[str]) -> np.ndarray:
        with fast():
            return np.asarray(model.predict(texts, as_numpy=True, show_progress_bar=False))

    return predict


METHODS: dict[str, Callable[..., Callable[[list[str]], np.ndarray]]] = {
    "fourth": fourth,
    "unfrozen": unfrozen,
    "setfit": setfit,
}


def run(options: Namespace, method: str, labels: int, seed: int) -> list[Row]:
    """Test error, %, and seconds."""
    warnings.simplefilter("ignore")
    known = labelled(reviews(options.imdb, "train", TRAIN), labels, seed)
    texts, answers = reviews(options.imdb, "test", TEST)
    began = time.process_time()
    predict = METHODS[method](known, options, seed)
    seconds = time.process_time() - began
    return [{"error": f"{(predict(texts) != answers).mean() * 100:.3f}", "seconds": f"{seconds:.1f}"}]


def table(rows: list[Row]) -> str:
    """Mean errors and seconds, as Markdown."""
    lines = ["| labels | method | test errors, % | mean | CPU seconds |", "|---|---|---|---|---|"]
    for labels, method in dict.fromkeys((row["labels"], row["method"]) for row in rows):
        own = [row for row in rows if (row["labels"], row["method"]) == (labels, method)]
        errors = [float(row["error"]) for row in own]
        seconds = mean(float(row["seconds"]) for row in own)
        each = ", ".join(f"{e:.1f}" for e in errors)
        lines.append(f"| {2 * int(labels)} | {method} | {each} | {mean(errors):.1f} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = grid_options(__doc__)
    parser.add_argument("--imdb", type=Path, required=True, help="folder of IMDB's parquet files")
    parser.add_argument("--encoder", required=True, help="folder of a sentence encoder")
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("10-12"), help="default: 10-12")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], help="default: all")
    parser.add_argument("--labels", type=int, nargs="+", default=[*LABELS], help="a class; default: 10 50")
    parser.add_argument("--pairs-steps", type=int, default=-1, help="most steps of SetFit; default: an epoch")
    options = parser.parse_args()
    jobs = {
        (method, str(labels), str(seed)): partial(run, options, method, labels, seed)
        for labels in options.labels
        for method in options.methods
        for seed in options.seeds
    }
    print(table(make_rows(jobs, KEY, options)))


if __name__ == "__main__":
    main()
