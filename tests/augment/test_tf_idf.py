"""TF-IDF word replacement against examples worked by hand."""

import math

import pytest
import torch

from ssl_weighting.augment.tf_idf import TfIdf
from ssl_weighting.errors import UserError

# Three texts over the words a=0, b=1, c=2, d=3:  "a b b", "a c", "a d"; a fourth, "c d d d", is not unlabelled.
WORDS = torch.tensor([0, 1, 1, 0, 2, 0, 3, 2, 3, 3, 3], dtype=torch.int32)
COUNTS = torch.tensor([1, 2, 2, 1, 1, 1, 1, 1, 3, 3, 3], dtype=torch.int16)
OFFSETS = torch.tensor([0, 3, 5, 7, 11])


def made(probability=0.7):
    return TfIdf(WORDS, COUNTS, OFFSETS, torch.tensor([0, 1, 2]), probability)


def rates_of(tf_idf, text):
    part = slice(int(OFFSETS[text]), int(OFFSETS[text + 1]))
    words, counts = WORDS[part][None], COUNTS[part][None]
    return tf_idf.rates(words, counts, torch.tensor([text]), torch.tensor([words.shape[1]]))[0]


def test_probability_of_being_replaced():
    # idf: a 0, others log 3. "a b b": tf·idf 0, ⅔L, ⅔L: gaps ⅔L, 0, 0, of mean ⅔L/3.
    tf_idf = made()
    assert rates_of(tf_idf, 0).tolist() == pytest.approx([0.7 * 3, 0, 0], abs=1e-5)
    assert rates_of(tf_idf, 1).tolist() == pytest.approx([0.7 * 2, 0], abs=1e-5)
    # "c d d d": ¼L, ¾L: gaps ½L, 0, 0, 0
    assert rates_of(tf_idf, 3).tolist() == pytest.approx([0.7 * 4, 0, 0, 0], abs=1e-5)


def test_mean_probability_is_the_share():
    words = torch.randint(0, 50, (400,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 100, 250, 400])
    counts = torch.cat([(t[:, None] == t).sum(1) for t in (words[:100], words[100:250], words[250:])])
    tf_idf = TfIdf(words, counts.short(), offsets, torch.arange(3), 0.3)
    rates = tf_idf.rates(words[None, :100], counts[None, :100], torch.tensor([0]), torch.tensor([100]))
    assert rates.mean().item() == pytest.approx(0.3, rel=1e-5)


def test_new_words_are_the_common_ones():
    # S: a 0, b ⅔L, c ½L, d ½L; max − S: ⅔L, 0, L/6, L/6.
    tf_idf = made()
    torch.manual_seed(0)
    drawn = tf_idf.replace(torch.ones(100, 300, dtype=torch.int32), torch.ones(100, 300))
    shares = torch.bincount(drawn.flatten().long(), minlength=4) / drawn.numel()
    assert shares.tolist() == pytest.approx([2 / 3, 0, 1 / 6, 1 / 6], abs=0.01)
    assert math.isclose(float(shares[1]), 0)


def test_replaces_as_often_as_said_and_never_the_padding():
    tf_idf = made()
    words = torch.full((50, 400), 1, dtype=torch.int32)
    words[:, 300:] = -1
    torch.manual_seed(0)
    changed = tf_idf.replace(words, torch.full(words.shape, 0.4)) != words
    assert changed[:, :300].float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert not changed[:, 300:].any()
    assert not (tf_idf.replace(words, torch.zeros(words.shape)) != words).any()


def test_same_seed_same_words():
    tf_idf, words = made(), torch.ones(4, 9, dtype=torch.int32)
    torch.manual_seed(3)
    first = tf_idf.replace(words, torch.full((4, 9), 0.5))
    torch.manual_seed(3)
    assert torch.equal(first, tf_idf.replace(words, torch.full((4, 9), 0.5)))


def test_equal_texts_and_empty_ones():
    tf_idf = TfIdf(
        torch.tensor([0, 1, 0, 1], dtype=torch.int32),
        torch.ones(4, dtype=torch.int16),
        torch.tensor([0, 2, 2, 4]),
        torch.arange(3),
        0.7,
    )
    drawn = tf_idf.replace(torch.zeros(20, 30, dtype=torch.int32), torch.ones(20, 30))
    assert drawn.unique().tolist() == [0, 1]


def test_refuses_impossible_shares():
    with pytest.raises(UserError, match=r"data\.replace=1\.5"):
        made(1.5)
