"""The command ``paraphrase`` with tiny random translation models: resumed after a kill, the file is the same."""

import re
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssl_weighting.app.cli import main
from ssl_weighting.app.paraphrase import sentences_of
from ssl_weighting.data.text import Text


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two folders with a random MarianMT model and its real kind of tokenizer, SentencePiece."""
    import transformers

    spm = pytest.importorskip("sentencepiece")
    import json

    import torch

    folder = tmp_path_factory.mktemp("marian")
    corpus = folder / "corpus.txt"
    words = re.findall(r"\w+", "a good film with the plot of that story it was bad and boring but fun to see")
    corpus.write_text("\n".join(" ".join(words[i:] + words[:i]) for i in range(len(words)) for _ in range(5)))
    spm.SentencePieceTrainer.Train(
        input=str(corpus),
        model_prefix=str(folder / "m"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = spm.SentencePieceProcessor(model_file=str(folder / "m.model"))
    vocabulary = ["</s>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, len(pieces))), "<pad>"]
    made = []
    for seed, name in enumerate(("there", "back")):
        target = folder / name
        target.mkdir()
        (target / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(vocabulary)}))
        for side in ("source", "target"):
            (target / f"{side}.spm").write_bytes((folder / "m.model").read_bytes())
        (target / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "fr"})
        )
        config = transformers.MarianConfig(
            vocab_size=len(vocabulary), d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=64,
            pad_token_id=len(vocabulary) - 1, decoder_start_token_id=len(vocabulary) - 1, eos_token_id=0,
            forced_eos_token_id=0,
        )  # fmt: skip
        torch.manual_seed(seed)
        transformers.MarianMTModel(config).save_pretrained(target)
        made.append(target)
    return made


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "train.parquet"
    rows = [
        f"It was a good film {i}. The plot of that story was bad and boring! But fun to see."
        for i in range(200)
    ]
    pq.write_table(pa.table({"text": [*rows, rows[0]], "label": [i % 2 for i in range(201)]}), path)
    recipe = path.with_name("mine.yaml")
    recipe.write_text(f"data:\n  class_path: Text\n  init_args: {{train: {path}}}\nmodel: {{}}\n")
    return recipe, path


def arguments(models, texts, out, *more):
    there, back = map(str, models)
    return [
        *("paraphrase", "--config", str(texts[0]), "--out", str(out), "--there", there, "--back", back),
        *("--batch_size", "32", "--device", "cpu", *more),
    ]


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_file(models, texts, tmp_path, tiny_bert):
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    assert main(arguments(models, texts, whole)) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "ssl_weighting", *arguments(models, texts, killed)], stdout=subprocess.DEVNULL
    )
    while not list(tmp_path.glob(".killed.parquet.*.parts/000001.parquet")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    assert main(arguments(models, texts, killed)) == 0
    assert whole.read_bytes() == killed.read_bytes()
    assert not list(tmp_path.glob(".*.parts"))
    table = pq.read_table(whole)
    assert len(table) == 200  # a text that occurs twice is paraphrased once
    assert len(set(table["paraphrase"].to_pylist())) > 100
    data = Text(
        str(texts[1]), tokenizer=str(tiny_bert), paraphrases=whole, cache=tmp_path / "cache",
        num_validation=20, num_labeled=20,
    )  # fmt: skip
    data.setup("fit")


def test_other_settings_do_not_mix(models, texts, tmp_path):
    out = tmp_path / "a.parquet"
    assert main(arguments(models, texts, out, "--limit", "3")) == 0
    first = pq.read_table(out)
    assert first["text"].to_pylist()[0].startswith("It was a good film 0.")
    out.unlink()
    assert main(arguments(models, texts, out, "--limit", "3", "--seed", "1")) == 0
    assert pq.read_table(out)["paraphrase"] != first["paraphrase"]


def test_bad_input_is_one_line_and_nothing_is_overwritten(models, texts, tmp_path, capsys):
    out = tmp_path / "a.parquet"
    out.write_bytes(b"mine")
    for options, message in (
        (arguments(models, texts, out), "is there already"),
        (arguments(models, texts, tmp_path / "b", "--there", str(tmp_path)), "--there"),
        (arguments(models, texts, tmp_path / "b", "--temperature", "0"), "--temperature"),
        (arguments(models, texts, tmp_path / "b", "--strange", "0"), "--strange: no such option"),
        (arguments(models, (tmp_path / "none", None), tmp_path / "b"), "no such file or recipe"),
        (arguments(models, ("digits_uda", None), tmp_path / "b"), "its data are no texts"),
    ):
        assert main(options) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert out.read_bytes() == b"mine"


def test_sentences():
    assert sentences_of("One. Two!  Three? four") == ["One.", "Two!", "Three?", "four"]
    assert [len(s.split()) for s in sentences_of("w " * 170)] == [80, 80, 10]
    assert sentences_of("  ") == []


def test_nothing_is_named(capsys):
    assert main(["paraphrase"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --config: missing; type ssl-weighting paraphrase --config "
    )
