"""Texts of one's own: files, labels, batches, augmentations and paraphrases."""

import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import words
from modules import ssl_module

from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.app.cli import main
from ssl_weighting.augment import RandAugment
from ssl_weighting.backbones.transformer import Transformer
from ssl_weighting.data.paraphrases import read_paraphrases
from ssl_weighting.data.text import Text
from ssl_weighting.errors import DataWarning, UserError

ROWS = [
    *((f"loved it, great fun {i}", "good") for i in range(12)),
    *((f'hated it, "awful"\nplot {i}', "bad") for i in range(12)),
    *((f"a film {i}", "so, so") for i in range(12)),
    *((f"the story was not boring {i}", None) for i in range(20)),
]
NUMBERS = {"bad": 0, "good": 1, "so, so": 2, None: None}


def write(path, rows, number=False):
    texts, labels = [t for t, _ in rows], [NUMBERS[x] if number else x for _, x in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts, "label": labels}), path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"text": t, "label": x}) for t, x in zip(texts, labels, strict=True)]
        path.write_text("\n".join(lines))
    else:
        import csv

        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return path


def made(path, tiny_bert, tmp_path, **kwargs):
    return Text(str(path), tokenizer=str(tiny_bert), cache=tmp_path / "cache", **kwargs)


@pytest.mark.parametrize("number", [False, True])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file(tiny_bert, tmp_path, ending, number):
    path = write(tmp_path / f"train.{ending}", ROWS, number)
    data = made(path, tiny_bert, tmp_path, num_labeled=6, num_validation=9)
    data.setup("fit")
    assert data.class_names == (["0", "1", "2"] if number else ["bad", "good", "so, so"])
    source = data.load(train=True)
    assert [int((source.labels == c).sum()) for c in (-1, 0, 1, 2)] == [20, 12, 12, 12]
    assert source.describe(torch.tensor([13])) == ['hated it, "awful"\nplot 1']
    assert len(data.sets["unlabeled"]) == 56 - 9
    assert data.sets["labeled"].labels.bincount().tolist() == [2, 2, 2]


def test_minus_one_is_no_class_of_numbers(tiny_bert, tmp_path):
    rows = {"text": ["a", "b", "c", "d"], "label": [1, 0, -1, -1]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    data = made(tmp_path / "a.parquet", tiny_bert, tmp_path)
    assert data.all_class_names == ("0", "1")
    assert data.read(train=True).labels.tolist() == [1, 0, -1, -1]


def test_a_test_file_and_labels_it_must_not_have(tiny_bert, tmp_path):
    train = write(tmp_path / "train.csv", ROWS)
    test = write(tmp_path / "test.csv", ROWS[10:14])
    data = made(train, tiny_bert, tmp_path, test=str(test))
    data.setup("test")
    assert data.sets["test"].labels.tolist() == [1, 1, 0, 0]
    test.write_text("text,label\nfun,superb\n")
    with pytest.raises(UserError, match=r"data\.test=.*: label 'superb' is not among"):
        made(train, tiny_bert, tmp_path, test=str(test)).setup("test")


def batch_of(data, part="unlabeled", count=20):
    return data.sets[part].__getitems__(list(range(count)))


def test_a_batch_is_padded_to_its_longest_and_views_are_pieces(tiny_bert, tmp_path):
    data = made(write(tmp_path / "train.csv", ROWS), tiny_bert, tmp_path, max_length=16)
    data.setup("fit")
    batch = batch_of(data)
    texts = data.load(True).describe(data.sets["unlabeled"].rows[batch.row])
    tokenizer = data._tokenizer
    seen = data.view(batch.inputs, ("weak",))
    for i, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        expected = ids if len(ids) <= 16 else [ids[0], *ids[1:-1][-14:], ids[-1]]
        assert seen["input_ids"][i][seen["attention_mask"][i].bool()].tolist() == expected
    assert seen["attention_mask"].sum(1).max() == seen["input_ids"].shape[1] <= 16


def test_tf_idf_view_changes_words_by_torchs_seed(tiny_bert, tmp_path):
    data = made(write(tmp_path / "train.csv", ROWS), tiny_bert, tmp_path, replace=0.5)
    data.setup("fit")
    batch = batch_of(data)
    weak = data.view(batch.inputs, ("weak",))
    torch.manual_seed(0)
    strong = data.view(batch.inputs, ("tf_idf", "weak"))
    torch.manual_seed(0)
    again = data.view(batch.inputs, ("tf_idf", "weak"))
    assert torch.equal(strong["input_ids"], again["input_ids"])
    assert strong["input_ids"].shape != weak["input_ids"].shape or not torch.equal(
        strong["input_ids"], weak["input_ids"]
    )
    assert torch.equal(data.view(batch.inputs, ())["input_ids"], weak["input_ids"])


def test_image_augmentations_are_refused(tiny_bert, tmp_path):
    data = made(write(tmp_path / "train.csv", ROWS), tiny_bert, tmp_path)
    data.setup("fit")
    inputs = batch_of(data).inputs
    with pytest.raises(UserError, match=r"RandAugment augments images.*strong \[tf_idf\]"):
        data.view(inputs, (RandAugment("uda"), "weak"))
    with pytest.raises(UserError, match=r"there are no paraphrases; give --data\.paraphrases"):
        data.view(inputs, ("back_translation",))
    with pytest.raises(UserError, match=r"'strange'.*\['back_translation', 'tf_idf', 'weak'\]"):
        data.view(inputs, ("strange",))


TEXTS = pa.array(["a good film with a story", "short", "it was great fun to see", "a long enough text here"])


def test_paraphrases_a_line_each_as_udas(tmp_path):
    path = tmp_path / "para.txt"
    path.write_text("a fine film with a plot\nsomething longer than it\n  it was nice to see it \nno\n")
    read = read_paraphrases(path, TEXTS).to_pylist()
    # The second text and the fourth paraphrase have fewer than ten characters.
    assert read == ["a fine film with a plot", "short", "it was nice to see it", "a long enough text here"]
    path.write_text("a film\n" * 3)
    with pytest.raises(UserError, match="has 3 lines, and there are 4"):
        read_paraphrases(path, TEXTS)


def test_paraphrases_by_their_texts(tmp_path):
    path = tmp_path / "para.parquet"
    pq.write_table(
        pa.table(
            {
                "text": [TEXTS[2].as_py(), TEXTS[0].as_py(), "another"],
                "paraphrase": ["to see it was much fun", "x" * 100, "y"],
            }
        ),
        path,
    )
    read = read_paraphrases(path, TEXTS).to_pylist()
    assert read[2] == "to see it was much fun"
    assert read[0] == TEXTS[0].as_py()  # more than half as long again
    assert read[1] == "short" and read[3] == TEXTS[3].as_py()  # not in the file
    pq.write_table(pa.table({"text": ["z"], "paraphrase": ["z"]}), path)
    with pytest.raises(UserError, match="none of the training texts"):
        read_paraphrases(path, TEXTS)
    with pytest.raises(UserError, match="no such file"):
        read_paraphrases(tmp_path / "none.parquet", TEXTS)


def test_back_translation_shows_the_rows_own_paraphrase(tiny_bert, tmp_path):
    path = write(tmp_path / "train.csv", ROWS)
    paraphrases = tmp_path / "para.parquet"
    texts = [t.strip() for t, _ in ROWS]
    pq.write_table(pa.table({"text": texts, "paraphrase": [f"{t} xyz" for t in texts]}), paraphrases)
    data = made(path, tiny_bert, tmp_path, paraphrases=paraphrases)
    data.setup("fit")
    batch = batch_of(data)
    seen = data.view(batch.inputs, ("back_translation", "weak"))
    for i, row in enumerate(data.sets["unlabeled"].rows[batch.row].tolist()):
        expected = data._tokenizer(f"{texts[row]} xyz")["input_ids"]
        expected = expected if len(texts[row]) >= 10 else data._tokenizer(texts[row])["input_ids"]
        assert seen["input_ids"][i][seen["attention_mask"][i].bool()].tolist() == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,x\nb,x\n", r"data\.train=.*: the column 'label' holds 1 different label: x"),
        (
            "words,label\na,x\nb,y\n",
            r"has no column 'text' but words, label; name yours with --data\.text_column",
        ),
        ("text,label\na,x,z\n", r"data\.train=.*line 2: has 3 columns and the header 2"),
    ],
)
def test_bad_files_are_one_line(tiny_bert, tmp_path, content, message):
    path = tmp_path / "train.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        made(path, tiny_bert, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        made(tmp_path / "none.csv", tiny_bert, tmp_path)


def test_a_test_file_that_pandas_wrote_otherwise(tiny_bert, tmp_path):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("text,label\n" + "good,1.0\nbad,0.0\n" * 6 + "what,\n" * 4)
    test.write_text("text,label\nfun,1\ngreat,1\nawful,0\n")
    assert made(train, tiny_bert, tmp_path, test=str(test)).read(train=False).labels.tolist() == [1, 1, 0]


def test_empty_texts(tiny_bert, tmp_path):
    path = write(tmp_path / "train.csv", [*ROWS, ("", "good"), (" ", None)])
    with pytest.warns(DataWarning, match="2 of 58 texts are empty"):
        made(path, tiny_bert, tmp_path)
    with pytest.raises(
        UserError, match=r"all 56 texts are empty; name another column with --data\.text_column"
    ):
        made(write(tmp_path / "none.csv", [(" ", label) for _, label in ROWS]), tiny_bert, tmp_path)


def test_an_encoder_that_lacks_its_tokenizer(tiny_bert, tmp_path, monkeypatch, capsys):
    path, folder = write(tmp_path / "train.csv", ROWS), tmp_path / "bert"
    shutil.copytree(tiny_bert, folder, ignore=shutil.ignore_patterns("vocab.txt", "tokenizer*"))
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--text", str(path), "--encoder", str(folder), "--out", "a.yaml"]) == 2
    assert re.search(
        rf"data\.tokenizer={folder}: .*(knows \d+ word pieces|no tokenizer)", capsys.readouterr().err
    )
    assert not (tmp_path / "a.yaml").exists()
    module = ssl_module(
        3, Transformer(str(tiny_bert)), UDA(threshold=None, strong=["tf_idf"]), weighting_warmup_steps=9
    )
    with pytest.raises(UserError, match=r"data\.tokenizer=.*|no tokenizer"):
        bare_trainer(1, "cpu").fit(module, made(path, folder, tmp_path))


METHODS = {
    "UDA": ["--model.algorithm.strong", "[tf_idf]", "--model.algorithm.threshold", "null"],
    "FixMatch": ["--model.algorithm.strong", "[tf_idf]"],
    "PseudoLabel": [],
    "MeanTeacher": ["--model.influence", "ExactLastLayer", "--model.influence.damping", "50"],
    "VAT": ["--model.influence", "ExactLastLayer", "--model.influence.damping", "1"],
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_on_a_csv_of_three_classes(tiny_bert, tmp_path, method):
    train = write(tmp_path / "train.csv", ROWS)
    test = write(tmp_path / "test.csv", ROWS[:36])
    options = {
        "config": "imdb_uda_small",
        "runs": tmp_path,
        "data": "Text",
        "data.train": train,
        "data.test": test,
        "data.cache": tmp_path / "cache",
        "data.num_labeled": 6,
        "data.num_validation": 6,
        "data.labeled_batch_size": 4,
        "data.unlabeled_batch_size": 5,
        "model.backbone.name": tiny_bert,
        "model.backbone.layers": "null",
        "model.backbone.frozen_layers": 0,
        "model.weighting.inner_steps": 1,
        "model.weighting.warmup_steps": 0,
        "model.weighting.update_masked": "true",
        "trainer.max_steps": 3,
        "trainer.accelerator": "cpu",
    }
    assert main(["fit", *words(options), "--model.algorithm", method, *METHODS[method]]) == 0
    (checkpoint,) = tmp_path.glob("*/*/checkpoints/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert (
        state["weighting.weights.values"].isfinite().all()
        and (state["weighting.stats.updates"] > 0).sum() >= 5
    )
    if method in ("UDA", "FixMatch"):
        assert (state["weighting.weights.values"] != 1).any()
