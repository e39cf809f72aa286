"""Pretrained text encoders of the ``transformers`` library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_weighting.backbones.base import Backbone
from ssl_weighting.backbones.pretrained import add_lora, freeze_first_layers, last_layer, load_encoder
from ssl_weighting.errors import UserError
from ssl_weighting.protocols import Inputs

BUCKET_SAVING = 0.05
"""Least share of the positions that a further bucket must save to be worth a pass of its own."""


class Transformer(Backbone):
    """A BERT or another encoder that ``transformers.AutoModel`` loads, with pooled features.

    Weights are read from safetensors files only, and no code that comes with a model is run. Takes
    ``{"input_ids": (B, L) int64, "attention_mask": (B, L) int64}``, padded on the right.

    Texts of unequal length are run in up to ``max_buckets`` groups of about equal length, so that little of the
    work is padding.

    Args:
        name: A name on the Hugging Face hub, or a folder with ``config.json`` and ``model.safetensors``.
        dropout: Dropout of the features, on top of the encoder's own (BERT's fine-tuning code and UDA: 0.1).
        pooling: ``bert``: tanh(W h₀ + b), h₀ the last hidden state of the first token, W and b the pretrained pooler's
            where the encoder has one (BERT, RoBERTa), new otherwise. ``mean``: the mean of the last hidden states over
            the tokens, which sentence encoders are trained for.
        layers: Keep only so many of the first layers; null keeps all. The last ones of an encoder trained for another
            purpose, such as sentence similarity, can have lost what the task needs.
        frozen_layers: So many of the first layers, and the embeddings, keep their pretrained weights.
        max_buckets: Most groups that a batch is run in; 1 to pad all to the longest.
        frozen: Nothing of it is trained: see :class:`~ssl_weighting.backbones.base.Backbone`. Best with ``pooling:
            mean``.
        lora_rank: Train of its layers additions of this rank alone (LoRA, Hu et al. 2022), which needs ``peft``: ``pip
            install 'ssl-weighting[peft]'``. ``null`` trains all weights.

    Raises:
        UserError: If there is no such encoder, neither in a folder nor on the hub.
    """

    regroups = True

    def __init__(
        self,
        name: str = "bert-base-uncased",
        dropout: float = 0.1,
        pooling: Literal["bert", "mean"] = "bert",
        layers: int | None = None,
        frozen_layers: int = 0,
        max_buckets: int = 4,
        frozen: bool = False,
        lora_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        if not 0 <= dropout < 1:
            raise UserError(f"model.backbone.dropout={dropout}: must be at least 0 and below 1")
        if max_buckets < 1:
            raise UserError(f"model.backbone.max_buckets={max_buckets}: must be at least 1")
        if layers is not None and layers < 1:
            raise UserError(f"model.backbone.layers={layers}: must be at least 1")
        self.encoder: Any
        self.encoder, missing = load_encoder(name, layers, optional=("pooler",), attn_implementation="sdpa")
        config = self.encoder.config
        self.feature_dim = int(config.hidden_size)
        self.vocabulary_size = int(getattr(config, "vocab_size", 0))
        self.spread = float(getattr(config, "initializer_range", 0.02))
        self.max_length = int(getattr(config, "max_position_embeddings", 0) or 10**9)
        self.max_buckets, self.pooling = max_buckets, pooling
        self.pooler: nn.Module | None = None
        if pooling == "mean" or missing:
            self.encoder.pooler = None  # an unused one would have no gradient
        if pooling == "bert" and getattr(self.encoder, "pooler", None) is None:
            if frozen:
                raise UserError(
                    f"model.backbone.pooling=bert: {name} brings no pooler, and a frozen one would stay as it is drawn; "
                    "give --model.backbone.pooling mean"
                )
            dense = nn.Linear(self.feature_dim, self.feature_dim)
            self.initialise_head(dense.weight)
            nn.init.zeros_(dense.bias)
            self.pooler = nn.Sequential(dense, nn.Tanh())
        self.dropout = nn.Dropout(dropout)
        freeze_first_layers(self.encoder, frozen_layers)
        add_lora(self.encoder, lora_rank, frozen_layers, frozen)
        self.last_block = last_layer(self.encoder)
        self.train()  # from_pretrained leaves evaluation mode, and Lightning keeps modes as they are

    def initialise_head(self, weight: Tensor) -> None:
        """Normal, cut off at two deviations, of the encoder's own deviation (BERT: 0.02)."""
        nn.init.trunc_normal_(weight, std=self.spread, a=-2 * self.spread, b=2 * self.spread)

    def forward(self, inputs: Inputs) -> Tensor:
        """Features (B, hidden_size) of token batches."""
        mask = inputs["attention_mask"]
        if mask.shape[1] > self.max_length:
            raise UserError(
                f"data.max_length: texts of {mask.shape[1]} tokens; this encoder takes at most {self.max_length}"
            )
        if not self.regroups or self.lockstep or self.max_buckets == 1 or len(mask) == 1:
            return self._features(inputs)
        lengths = mask.sum(1)
        order = lengths.argsort(stable=True)
        host = lengths[order].cpu().numpy()
        sizes = buckets(host, self.max_buckets)
        parts, start = [], 0
        for size in sizes:
            rows, shortest, longest = order[start : start + size], host[start], host[start + size - 1]
            part = pytree.tree_map(lambda x: x[rows, :longest], inputs)  # noqa: B023
            parts.append(self._features(part, padded=shortest < longest))
            start += size
        return torch.cat(parts)[order.argsort()]

    def _features(self, inputs: Inputs, padded: bool = True) -> Tensor:
        arguments = {"attention_mask": inputs["attention_mask"]} if padded else {}
        if "shift" in inputs:
            embeddings = self.encoder.get_input_embeddings()(inputs["input_ids"])
            arguments["inputs_embeds"] = embeddings + inputs["shift"]
        else:
            arguments["input_ids"] = inputs["input_ids"]
        output = self.encoder(**arguments)
        hidden = output.last_hidden_state
        if self.pooling == "mean":
            present = inputs["attention_mask"][..., None].to(hidden.dtype)
            pooled = (hidden * present).sum(1) / present.sum(1)
        else:
            pooled = output.pooler_output if self.pooler is None else self.pooler(hidden[:, 0])
        features: Tensor = self.dropout(pooled)
        return features

    def join(self, batches: Sequence[Inputs]) -> Inputs:
        """Several token batches as one, padded to the longest."""
        longest = max(batch["attention_mask"].shape[1] for batch in batches)

        def padded(x: Tensor) -> Tensor:
            return nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, longest - x.shape[1]))

        joined: Inputs = pytree.tree_map(lambda *parts: torch.cat([padded(x) for x in parts]), *batches)
        return joined

    def perturbation_like(self, inputs: Inputs) -> Tensor:
        """Normal noise (B, L, hidden_size) for the word embeddings; 0 on padding."""
        table: Tensor = self.encoder.get_input_embeddings().weight
        mask: Tensor = inputs["attention_mask"]
        noise = torch.randn(*mask.shape, table.shape[1], device=mask.device, dtype=table.dtype)
        return noise * mask[..., None]

    def perturb(self, inputs: Inputs, by: Tensor) -> Inputs:
        """The texts with their word embeddings moved (Miyato et al. 2017)."""
        return {**inputs, "shift": inputs["shift"] + by if "shift" in inputs else by}


def buckets(lengths: np.ndarray, most: int) -> list[int]:
    """How many texts, in rising order of length, to run together, so that the padded positions are few.

    Args:
        lengths: (B,), rising.
        most: Largest number of groups.

    Returns:
        Sizes of the groups, in order. The split is the best for its number of groups; one more group is made
        only where it saves a share of ``BUCKET_SAVING`` of the unsplit batch's positions.
    """
    n = len(lengths)
    ends = np.append(np.flatnonzero(np.diff(lengths)) + 1, n)  # texts of one length stay together
    starts, longest = np.append(0, ends[:-1]), lengths[ends - 1]
    cost = np.where(starts[:, None] <= starts[None, :], (ends[None, :] - starts[:, None]) * longest, np.inf)
    best, choices = cost[0], []  # best[j]: positions of texts up to the j-th length
    for _ in range(1, min(most, len(ends))):
        options = np.vstack(
            (cost[0], best[:-1, None] + cost[1:])
        )  # [i, j]: the last group begins at length i
        choice = options.argmin(0)
        further = options[choice, np.arange(len(ends))]
        if best[-1] - further[-1] < BUCKET_SAVING * cost[0, -1]:
            break
        best = further
        choices.append(choice)
    sizes, last = [], len(ends) - 1
    for choice in reversed(choices):
        first = choice[last]
        if first == 0:
            break
        sizes.append(int(ends[last] - starts[first]))
        last = first - 1
    return [int(ends[last]), *reversed(sizes)]
