"""What open-set methods share: a head that says of every class whether an example is of it.

Its logits are those of :class:`~ssl_weighting.terms.OneVsAll`: 2c says no and 2c + 1 says yes to class c.

Shapes: B examples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_weighting.algorithms.base import one_hot_like
from ssl_weighting.protocols import Forward
from ssl_weighting.terms import CROSS_ENTROPY, ENTROPY, SQUARED_ERROR, LossTerm, OneVsAll

HEAD = "one_vs_all"
"""What the head is called."""
PAIR_CROSS_ENTROPY = OneVsAll(CROSS_ENTROPY)
PAIR_SQUARED_ERROR = OneVsAll(SQUARED_ERROR)
PAIR_ENTROPY = OneVsAll(ENTROPY)


def pair_probabilities(output: Forward) -> Tensor:
    """No and yes to every class, (B, 2C), each two of which sum to one; detached, float32 or better."""
    logits = output.logits.detach()
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    return logits.reshape(len(logits), -1, 2).softmax(-1).reshape(logits.shape)


def yes(output: Forward) -> Tensor:
    """Probability that an example is of each class, by that class's own two logits, (B, C)."""
    return pair_probabilities(output)[:, 1::2]


def supervised_pairs_term(output: Forward, target: Tensor, scale: float = 1.0) -> LossTerm:
    """L_ova: a labelled example's class is to say yes, and the class that most wrongly says yes is to say no.

    With o_c the probability of "yes" to class c (Saito et al. 2021),

        −log o_y − min_(c ≠ y) log(1 − o_c)

    The other pairs' targets are (0, 0), so that they add nothing.

    Args:
        output: Of the head on labelled examples.
        target: (B, C), one-hot.
        scale: Coefficient.
    """
    nearest = yes(output).masked_fill(target > 0, -1).argmax(-1)
    pairs = torch.stack((one_hot_like(nearest, target), target), -1).flatten(1)
    mask = torch.ones(len(target), device=target.device)
    seen = (output.inputs, output.features, output.logits)
    return LossTerm(HEAD, *seen, pairs, PAIR_CROSS_ENTROPY, mask, head=HEAD, scale=scale)
