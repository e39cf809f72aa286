"""Replacing the words that say little (Xie et al. 2019, Sec. 2.2): TF-IDF word replacement as in UDA's code."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssl_weighting.errors import UserError


class TfIdf:
    """Replaces a word w of a text by another, the likelier the lower its tf-idf there.

    With tf = count of w in the text / words of the text, and idf = log(texts / texts that hold w),

        P(replace w) = p · (max − tf·idf(w)) / mean over the text of (max − tf·idf)
        P(new word = v) ∝ max S − S(v),   S(v) = Σ over texts of tf·idf(v)

    as google-research/uda 960684e, text/augmentation/word_level_augment.py. A probability above 1 is 1.

    Args:
        words: int32 (N,), the words of all texts in turn.
        counts: int16 (N,), how often the word stands in its text.
        offsets: int64 (n + 1,), text i is ``words[offsets[i]:offsets[i + 1]]``.
        rows: int64, the texts that idf and S are counted on: the unlabelled ones.
        probability: p, share of a text's words to be replaced.

    Raises:
        UserError: If p is not above 0 and at most 1.
    """

    def __init__(
        self, words: Tensor, counts: Tensor, offsets: Tensor, rows: Tensor, probability: float
    ) -> None:
        if not 0 < probability <= 1:
            raise UserError(f"data.replace={probability}: must be above 0 and at most 1")
        flat, count, limits = words.numpy(), counts.numpy(), offsets.numpy()
        lengths = np.diff(limits)
        counted = np.zeros(len(lengths))
        counted[rows.numpy()] = 1
        # A word that stands c times in a text is met c times there: 1/c each makes one text.
        texts = np.bincount(flat, np.repeat(counted, lengths) / count).round()
        idf = np.log(len(rows) / texts.clip(min=1))
        scores = np.bincount(flat, np.repeat(counted / lengths.clip(min=1), lengths)) * idf
        weight = np.where(texts > 0, scores.max(initial=0) - scores, 0)
        if not weight.any():  # all texts hold the same words: any is as good as another
            weight = (texts > 0).astype(np.float64)
        self._cumulative = torch.from_numpy(weight.cumsum() / max(weight.sum(), 1e-300)).float()

        filled = lengths > 0
        score = count * idf.astype(np.float32)[flat]  # times 1/length: tf-idf
        highest, mean = np.zeros(len(lengths)), np.zeros(len(lengths))
        highest[filled] = np.maximum.reduceat(score, limits[:-1][filled]) / lengths[filled]
        mean[filled] = np.add.reduceat(score, limits[:-1][filled]) / lengths[filled] ** 2
        gap = highest - mean
        self._idf, self._highest = torch.from_numpy(idf), torch.from_numpy(highest)
        self._scale = torch.from_numpy(np.where(gap > 1e-9, probability / gap.clip(min=1e-9), 0))

    def rates(self, words: Tensor, counts: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        """P(replace) of some words of some texts.

        Args:
            words: (B, W) integers ≥ 0.
            counts: (B, W), how often the word stands in its text.
            rows: (B,) int64, which texts.
            lengths: (B,), how many words the whole texts have.

        Returns:
            (B, W) float32, may exceed 1.
        """
        score = counts * self._idf[words] / lengths.clamp(min=1)[:, None]
        rates: Tensor = ((self._highest[rows, None] - score) * self._scale[rows, None]).float()
        return rates

    def replace(self, words: Tensor, rates: Tensor) -> Tensor:
        """Words (B, W) with some replaced, by torch's random numbers; −1, the padding, stays."""
        self._cumulative = cumulative = self._cumulative.to(words.device)
        drawn = torch.rand(words.shape, device=words.device, dtype=torch.float32)
        new = torch.searchsorted(cumulative, torch.rand_like(drawn), right=True).clamp(
            max=len(cumulative) - 1
        )
        return torch.where((drawn < rates) & (words >= 0), new.to(words.dtype), words)
