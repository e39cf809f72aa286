"""Texts as words and back as the tokenizer's own pieces; truncation; the cache."""

import pyarrow as pa
import pytest
import torch
from made_up import LFS_POINTER

from ssl_weighting.data.tokens import WordPieces, digest, load_tokenizer, tokenized, unknown_share
from ssl_weighting.errors import UserError

TEXTS = [
    "The film was GOOD, very good!",
    "",
    "xyzzy plot: unbelievable acting (and boring)",
    "a",
    "fun " * 40,
    "snowman \u2603 and caf\u00e9",
]


def strings(texts):
    return pa.array(texts, pa.large_string())


def padded(tokens, rows, pieces):
    texts = [tokens.words[tokens.offsets[r] : tokens.offsets[r + 1]] for r in rows]
    return torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1)


@pytest.fixture(scope="module")
def byte_pair(tmp_path_factory):
    """A byte-level BPE such as RoBERTa's, whose words carry the space before them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    folder = tmp_path_factory.mktemp("bpe")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("keep", ["end", "start"])
@pytest.mark.parametrize("max_length", [3, 7, 12, 100])
@pytest.mark.parametrize("kind", ["word pieces", "byte pairs"])
def test_pieces_are_the_tokenizers_own(tiny_bert, byte_pair, tmp_path, kind, max_length, keep):
    tokenizer = load_tokenizer(str(tiny_bert if kind == "word pieces" else byte_pair))
    pieces = WordPieces(tokenizer, max_length, keep)
    tokens = tokenized(strings(TEXTS), tokenizer, tmp_path, "texts")
    pieces.add(tokens)
    rows = [5, 0, 1, 2, 4, 3]
    batch = pieces(padded(tokens, rows, pieces))
    room = max_length - 2
    for i, row in enumerate(rows):
        ids = tokenizer(TEXTS[row])["input_ids"]
        inner = ids[1:-1]
        inner = (inner[-room:] if keep == "end" else inner[:room]) if len(inner) > room else inner
        mask = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][mask].tolist() == [ids[0], *inner, ids[-1]]
        assert (batch["input_ids"][i][~mask] == tokenizer.pad_token_id).all()
        assert torch.equal(mask, torch.arange(len(mask)) < mask.sum())
    assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]


def test_truncation_worked_by_hand(tiny_bert, tmp_path):
    tokenizer = load_tokenizer(str(tiny_bert))
    tokens = tokenized(strings(["the film xyz"]), tokenizer, tmp_path, "texts")
    for keep, expected in (("end", "[CLS] x ##y ##z [SEP]"), ("start", "[CLS] the film x [SEP]")):
        pieces = WordPieces(tokenizer, 5, keep)
        pieces.add(tokens)
        ids = pieces(tokens.words[None])["input_ids"][0]
        assert " ".join(tokenizer.convert_ids_to_tokens(ids)) == expected


def test_words_of_a_second_set_keep_their_pieces(tiny_bert, tmp_path):
    tokenizer = load_tokenizer(str(tiny_bert))
    pieces = WordPieces(tokenizer, 30, "end")
    first = tokenized(strings(["zebra film"]), tokenizer, tmp_path, "texts")
    second = tokenized(strings(["quark film"]), tokenizer, tmp_path, "texts")
    assert pieces.add(first) == 0
    shift = pieces.add(second)
    assert shift == 1
    words = second.words + shift * (second.words >= pieces.size)
    assert pieces(words[None])["input_ids"][0].tolist() == tokenizer("quark film")["input_ids"]


def test_counts_and_the_cache(tiny_bert, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(str(tiny_bert))
    tokens = tokenized(strings(["good film good xyz xyz xyz", "fun"]), tokenizer, tmp_path, "texts")
    assert tokens.counts.tolist() == [2, 1, 2, 3, 3, 3, 1]
    assert tokens.offsets.tolist() == [0, 6, 7]
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr("ssl_weighting.data.tokens._tokenize", None)
    again = tokenized(strings(["good film good xyz xyz xyz", "fun"]), tokenizer, tmp_path, "texts")
    assert all(torch.equal(a, b) for a, b in zip(vars(tokens).values(), vars(again).values(), strict=True))
    monkeypatch.undo()
    file.write_bytes(file.read_bytes()[:50])  # damaged: made again
    again = tokenized(strings(["good film good xyz xyz xyz", "fun"]), tokenizer, tmp_path, "texts")
    assert torch.equal(again.words, tokens.words)
    tokenized(strings(["good film", "fun"]), tokenizer, tmp_path, "texts")
    assert len(list(tmp_path.iterdir())) == 2


def test_digest_sees_texts_and_where_they_end():
    assert digest(strings(["ab", "c"])) != digest(strings(["a", "bc"]))
    both = strings(["x", "ab", "c"])
    assert digest(both.slice(1)) == digest(strings(["ab", "c"]))


def test_a_missing_tokenizer_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"data\.tokenizer=") as caught:
        load_tokenizer(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def test_no_room(tiny_bert):
    with pytest.raises(UserError, match=r"data\.max_length=2"):
        WordPieces(load_tokenizer(str(tiny_bert)), 2, "end")


def test_a_pointer_of_git_lfs(bert_copy):
    (bert_copy / "tokenizer.json").write_text(LFS_POINTER)
    with pytest.raises(UserError, match=r"its tokenizer\.json is a pointer of git-lfs.*`git lfs pull`"):
        load_tokenizer(str(bert_copy))


@pytest.mark.parametrize(
    "text", ["a film was good", "\u0444\u0438\u043b\u044c\u043c \u0445\u043e\u0440\u043e\u0448"]
)
def test_words_that_the_tokenizer_does_not_know(tiny_bert, tmp_path, text):
    tokenizer = load_tokenizer(str(tiny_bert))
    share = unknown_share(tokenized(pa.array([text, ""]), tokenizer, tmp_path, "texts"), tokenizer)
    assert share == (0 if text.isascii() else 1)
