"""``ssl-weighting paraphrase``: paraphrases of training texts by translation there and back, for UDA."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jsonargparse import ArgumentParser
from rich.progress import track

from ssl_weighting.app.recipes import find_recipe, read_recipe
from ssl_weighting.data.text import TextData
from ssl_weighting.errors import UserError, one_line
from ssl_weighting.files import home_path, whole_file

BLOCK = 64
"""Texts between two savings."""
MAX_WORDS = 80
"""A longer sentence is translated in pieces."""

HELP = """\
Paraphrases of a recipe's training texts by translation there and back (en→fr→en), words drawn at random:
what UDA's code calls back-translation. A killed run goes on where it was, and ends with the same file.

  ssl-weighting paraphrase --config imdb_uda --out paraphrases.parquet [--data.root DIR]
  ssl-weighting fit --config imdb_uda --data.paraphrases paraphrases.parquet --model.algorithm.strong [back_translation]
"""


class Translator:
    """A sequence-to-sequence model that draws translations at random.

    Args:
        name: Hub name or folder of a model such as MarianMT's.
        key: The option that named it, for messages.
        temperature: Of the softmax that words are drawn from.
        batch_size: Sentences at a time.
        device: Where it runs.

    Raises:
        UserError: If there is no such model.
    """

    def __init__(self, name: str, key: str, temperature: float, batch_size: int, device: str) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer  # slow to import
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model = AutoModelForSeq2SeqLM.from_pretrained(name, trust_remote_code=False, weights_only=True)
        except ImportError:  # of MarianMT's tokenizers
            raise UserError(
                f"--{key} {name}: its tokenizer needs sentencepiece; pip install 'ssl-weighting[paraphrase]'"
            ) from None
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(
                f"--{key} {name}: no translation model to be had ({one_line(error)[:160]}); give a folder, or a name on "
                "the Hugging Face hub while the network is there"
            ) from None
        self.model = model.to(device).eval()
        self.temperature, self.batch_size, self.device = temperature, batch_size, device
        positions = getattr(model.config, "max_position_embeddings", None) or 512
        self.longest = min(512, int(positions))

    @torch.no_grad()
    def __call__(self, sentences: list[str]) -> list[str]:
        """A translation of each sentence."""
        order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
        translations = [""] * len(sentences)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = self.tokenizer(
                [sentences[i] for i in chosen],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.longest,
            ).to(self.device)
            drawn = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True,
                num_beams=1,
                top_k=0,
                temperature=self.temperature,
                max_new_tokens=min(self.longest - 1, 2 * batch["input_ids"].shape[1] + 10),
            )
            decoded = self.tokenizer.batch_decode(drawn, skip_special_tokens=True)
            for i, translation in zip(chosen, decoded, strict=True):
                translations[i] = translation
        return translations


def sentences_of(text: str) -> list[str]:
    """A text's sentences, those of more than 80 words in pieces."""
    found = []
    for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
        words = sentence.split()
        found += [" ".join(words[i : i + MAX_WORDS]) for i in range(0, len(words), MAX_WORDS)]
    return found


def paraphrased(texts: list[str], there: Translator, back: Translator) -> list[str]:
    """A paraphrase of each text, sentence by sentence."""
    parts = [sentences_of(text) for text in texts]
    drawn = iter(back(there([sentence for part in parts for sentence in part])))
    return [" ".join(next(drawn) for _ in part) for part in parts]


def blocks(
    texts: list[str], folder: Path, there: Translator, back: Translator, seed: int
) -> Iterator[pa.Table]:
    """The tables of all blocks of texts, from the folder where they were finished before, saved there if not.

    Random numbers are a function of the seed and the block, so that it does not matter when a run was killed.
    """
    for number in track(range(-(-len(texts) // BLOCK)), "Paraphrasing"):
        path = folder / f"{number:06d}.parquet"
        if not path.is_file():
            part = texts[number * BLOCK : (number + 1) * BLOCK]
            key = hashlib.sha256(f"{seed} paraphrase {number}".encode()).digest()
            torch.manual_seed(int.from_bytes(key[:8], "little") >> 1)
            with whole_file(path) as partial:
                pq.write_table(_table(part, paraphrased(part, there, back)), partial)
        yield pq.read_table(path)


def _table(texts: list[str], paraphrases: list[str]) -> pa.Table:
    return pa.table({"text": pa.array(texts, pa.string()), "paraphrase": pa.array(paraphrases, pa.string())})


def training_texts(config: str, overrides: list[str]) -> list[str]:
    """Cleaned training texts of a recipe, the same ones once.

    Raises:
        UserError: If the recipe's data are not texts, or are not to be had.
    """
    recipe = read_recipe(find_recipe(config))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TextData, "data")
    try:
        parser.set_defaults({"data": recipe["data"]})
        data = parser.instantiate_classes(parser.parse_args(overrides)).data
    except UserError:
        raise
    except Exception as error:  # whatever jsonargparse makes of it
        cause = error.__cause__ if isinstance(error.__cause__, UserError) else None
        raise cause or UserError(
            f"--config {config}: its data are no texts ({one_line(error)[:160]})"
        ) from None
    return list(dict.fromkeys(data.read(train=True).texts.to_pylist()))


def main(argv: list[str]) -> int:
    """Make the file; returns the exit status, 0."""
    if not argv:
        raise UserError("--config: missing; type ssl-weighting paraphrase --config RECIPE --out FILE.parquet")
    parser = argparse.ArgumentParser(
        "ssl-weighting paraphrase",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="recipe whose training texts are paraphrased")
    parser.add_argument("--out", type=home_path, required=True, help="parquet file to write")
    parser.add_argument("--there", default="Helsinki-NLP/opus-mt-en-fr", help="model, by hub name or folder")
    parser.add_argument("--back", default="Helsinki-NLP/opus-mt-fr-en", help="model, by hub name or folder")
    parser.add_argument("--temperature", type=float, default=0.9, help="of the draws (UDA: 0.9)")
    parser.add_argument("--batch_size", type=int, default=64, help="sentences at a time")
    parser.add_argument("--limit", type=int, help="only the first so many texts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    options, overrides = parser.parse_known_args(argv)
    if unknown := [o for o in overrides if o.startswith("--") and not o.startswith("--data")]:
        raise UserError(f"{unknown[0]}: no such option; `ssl-weighting paraphrase --help` lists all")
    if options.temperature <= 0 or options.batch_size < 1:
        raise UserError("--temperature must be above 0 and --batch_size at least 1")
    if options.out.exists():
        raise UserError(f"--out {options.out}: is there already; name another file, or delete it")
    texts = training_texts(options.config, overrides)[: options.limit]
    settings = [options.there, options.back, options.temperature, options.batch_size, options.seed, texts]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    folder = options.out.with_name(f".{options.out.name}.{key}.parts")
    there = Translator(options.there, "there", options.temperature, options.batch_size, options.device)
    back = Translator(options.back, "back", options.temperature, options.batch_size, options.device)
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.concat_tables(blocks(texts, folder, there, back, options.seed)).combine_chunks()
    with whole_file(options.out) as partial:
        pq.write_table(table, partial)
    shutil.rmtree(folder)
    print(f"{options.out}: paraphrases of {len(table)} texts")
    return 0
