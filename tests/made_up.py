"""Made-up data for tests, and for trying an installed package, which has no pytest: a tiny BERT, and reviews for it.

``python made_up.py FOLDER`` writes both, into FOLDER/bert and FOLDER/imdb.
"""

import random
import sys
from pathlib import Path

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
"""What git-lfs leaves in the place of a file that it has not fetched."""
WORDS = "the a film was good bad great awful plot story i it loved hated very not and boring fun br s acting"


def write_bert(folder: Path) -> None:
    """A random BERT of two layers and a vocabulary of letters and some words."""
    import torch
    import transformers

    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    vocabulary += [word for word in WORDS.split() if word not in vocabulary]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}'
    )
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=160,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)


VISION = ("dinov2", "dinov3", "vit", "clip", "siglip")


def write_vision(folder: Path, kind: str) -> None:
    """A random image encoder of two layers for images of 32 × 32 pixels, in patches of 8, with features of 8 numbers."""
    import torch
    import transformers as t

    small = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    wide = small | {"intermediate_size": 12}
    text = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "vocab_size": 99,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = {
            "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**small)),
            "dinov3": lambda: t.DINOv3ViTModel(t.DINOv3ViTConfig(**wide, num_register_tokens=1)),
            "vit": lambda: t.ViTModel(t.ViTConfig(**wide)),
            "clip": lambda: t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=wide, projection_dim=5)),
            "siglip": lambda: t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=wide)),
        }[kind]()
        for (
            parameter
        ) in model.parameters():  # zeros, such as those of a bias or a layer's scale, hide mistakes
            torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(folder)


def write_imdb(folder: Path) -> None:
    """Reviews in IMDB's layout: 40 to train, 20 to test, 30 unsupervised, 10 of them short."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    for split, count in (("train", 40), ("test", 20), ("unsup", 30)):
        labels = [-1 if split == "unsup" else int(i >= count // 2) for i in range(count)]
        texts = [
            ("loved great fun " if label == 1 else "hated awful boring " if label == 0 else "plot ")
            + " ".join(draw.choices(WORDS.split(), k=20 if split == "unsup" and i < 10 else 150))
            for i, label in enumerate(labels)
        ]
        ids = [i if split == "unsup" else i % (count // 2) for i in range(count)]
        pq.write_table(pa.table({"text": texts, "label": labels, "id": ids}), folder / f"{split}.parquet")


def write_films(path: Path, good: str, bad: str) -> None:
    """A table of 40 short texts, every second one without a label."""
    rows = [
        f'"a {word} film, number {i}",{label if i % 2 else ""}'
        for i in range(20)
        for word, label in (("good", good), ("bad", bad))
    ]
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")


def paint(path: Path, number: int, size: tuple[int, int] = (20, 20)) -> None:
    """A picture that is like no other."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.putpixel((0, 0), (number % 256, number // 256, 0))
    image.save(path, "JPEG" if path.suffix == ".jfif" else None)


if __name__ == "__main__":
    for name, write in (("bert", write_bert), ("imdb", write_imdb)):
        target = Path(sys.argv[1]) / name
        target.mkdir(parents=True)
        write(target)
