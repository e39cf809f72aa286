"""The table of frozen texts: what is read, embedded and drawn, and its rows."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from lab import embedded_texts
from lab.claims import frozen_texts as claim
from lab.frozen import POOL


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name, (classes, _, _) in claim.SETS.items():
        centres = generator.normal(size=(classes, 16)) * 2
        for part, count in (("train", 300), ("test", 100)):
            labels = np.arange(count) % classes
            features = (centres[labels] + generator.normal(size=(count, 16))).astype(np.float32)
            np.savez(tmp_path / f"{name}-{part}.npz", features=features, labels=labels)
    foreign = generator.normal(size=(90, 16)).astype(np.float32) * 3
    np.savez(tmp_path / "newsgroups-foreign.npz", features=foreign, labels=np.full(90, -1))
    return tmp_path


@pytest.mark.parametrize("name", claim.SETS)
def test_draws_the_same_labelled_texts_for_every_pool(folder, monkeypatch, name):
    monkeypatch.setattr(claim, "SIZE", 90)
    clean, dirty = (claim.draw(folder, name, pool, 5, 3) for pool in claim.POOLS)
    count = 5 * claim.SETS[name][0]
    for task in (clean, dirty):
        known = task.given != POOL
        assert known.sum() == count
        assert (~known).sum() == 90
        np.testing.assert_array_equal(task.given[known], task.truth[known])
    np.testing.assert_array_equal(clean.features[:count], dirty.features[:count])
    assert (clean.truth >= 0).all()
    assert (dirty.truth < 0).sum() == 30


def test_a_run_has_all_errors(folder, monkeypatch):
    monkeypatch.setattr(claim, "SIZE", 90)
    (row,) = claim.run(folder, "newsgroups", "a third foreign", 5, 0)
    assert all(0 <= float(row[name]) <= 100 for name in claim.SHOWN)


@pytest.fixture
def raw(tmp_path):
    for part in ("train", "test"):
        reviews = [f"review<br />{i}" for i in range(6)]
        pq.write_table(pa.table({"text": reviews, "label": [0, 1] * 3}), tmp_path / f"{part}.parquet")
        for file, names in (("20newsgroups", ("sci.med", "alt.atheism")), ("reuters-r8", ("ship", "earn"))):
            lines = ["Category\tText", "d\tstring", "class\t", *(f"{n}\tsays {n}\tso" for n in names * 2)]
            (tmp_path / f"{file}-{part}.tab").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_parts_are_cleaned_and_sorted_into_known_and_foreign(raw):
    found = {name: (texts, labels) for name, texts, labels in embedded_texts.parts(raw, raw)}
    assert {*found} == {f"{n}-{p}" for n in claim.SETS for p in ("train", "test")} | {"newsgroups-foreign"}
    assert sorted(found["imdb-test"][0]) == [f"review {i}" for i in range(6)]
    texts, labels = found["newsgroups-train"]
    assert texts == ["says sci.med\tso"] * 2
    assert labels.tolist() == [embedded_texts.GROUPS.index("sci.med")] * 2
    assert found["newsgroups-foreign"][1].tolist() == [-1, -1]
    assert {*found["r8-train"][1].tolist()} == {2, 6}


class _Tokens:
    """A word is a token, numbered by its length."""

    def __call__(self, texts, truncation, max_length):
        assert self.truncation_side == "left"
        return {"input_ids": [[len(word) for word in text.split()][-max_length:] for text in texts]}

    def pad(self, batch, return_tensors):
        ids = nn.utils.rnn.pad_sequence([torch.tensor(own) for own in batch["input_ids"]], batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class _Lengths(nn.Module):
    """The number of tokens, and of letters."""

    feature_dim = 2

    def forward(self, inputs):
        return torch.stack((inputs["attention_mask"].sum(1), inputs["input_ids"].sum(1)), 1).float()


def test_features_are_in_the_order_of_the_texts(monkeypatch):
    monkeypatch.setattr(embedded_texts, "BATCH", 2)
    monkeypatch.setattr(embedded_texts, "LENGTH", 3)
    found = embedded_texts.features_of(["one two three four", "five", "six ab"], _Lengths(), _Tokens())
    assert found.tolist() == [[3, 12], [1, 4], [2, 5]]


def test_what_is_there_is_not_embedded_again(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_texts, "Transformer", lambda *_, **__: _Lengths())
    monkeypatch.setattr(embedded_texts, "load_tokenizer", lambda _: _Tokens())
    out = tmp_path / "out"
    embedded_texts.embed(raw, raw, "encoder", out)
    np.savez(out / "r8-test.npz", features=np.zeros(1), labels=np.zeros(1))
    embedded_texts.embed(raw, raw, "encoder", out)
    assert np.load(out / "r8-test.npz")["features"].shape == (1,)
    assert np.load(out / "imdb-train.npz")["features"].shape == (6, 2)
    assert not [*out.glob("*.part.npz")]
