"""Every command that a document names is run, and so is every snippet of Python and YAML.

Budgets are cut to two steps, and data sets are small ones in the sets' own formats; placeholders such as RUN and DIR are
real things of those names. What is looked at but not run is in LOOKED_AT, with the reason.
"""

import argparse
import csv
import dataclasses
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from lab.__main__ import main as laboratory
from lab.speed import influence, memory, per_example_gradient, throughput
from ssl_weighting.app.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "docker/*.md", "recipes/*.md")
    for path in ROOT.glob(pattern)
)

# Programs whose commands are not run, and why; a method of Workshop checks each as far as it can.
LOOKED_AT = {
    "make": "makes environments and runs this very suite: the targets have to exist",
    "docker": "needs an engine: files, stages and arguments have to exist; what runs inside is run here, outside",
    "docker/smoke.sh": "needs an engine: it has to be there",
    "pip": "changes the environment that the tests run in: the extras have to exist",
    "python": "the scripts behind the figures take minutes to hours: their own parser has to accept the options",
    "torchrun": "starts processes: what it starts is run in this one, without the others",
    "cd": "changes a shell",
    ".": "changes a shell",
}
# Commands of ssl-weighting of which only the command line is parsed, and why.
ONLY_PARSED = {
    "demo": "about two minutes: `.ci/run` runs it on every commit",
    "dashboard": "needs an account at W&B",
    "paraphrase": "needs two translation models",
}

SHELL = ("split", "cat")
"""Programs whose lines a shell runs as they stand."""
NAMES = {*COMMANDS}
BUDGET = [
    *("--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"),
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"),
    *("--model.weighting.inner_steps", "1", "--model.weighting.warmup_steps", "0"),
]
SMALL_IMAGES = [
    *("--data.num_labeled", "20", "--data.num_validation", "20", "--data.download", "false"),
    *(
        "--data.verify_checksum",
        "false",
        "--data.labeled_batch_size",
        "4",
        "--data.unlabeled_batch_size",
        "8",
    ),
    *("--data.validation_batch_size", "8", "--model.backbone.depth", "10", "--model.backbone.width", "1"),
]
SMALL_TEXTS = [
    *("--data.root", "tiny_imdb", "--data.labeled", "random", "--data.cache", "cache"),
    *(
        "--data.labeled_batch_size",
        "4",
        "--data.unlabeled_batch_size",
        "8",
        "--data.validation_batch_size",
        "8",
    ),
    *("--model.backbone.name", "tiny_bert", "--model.backbone.frozen_layers", "0"),
]


class Passage(NamedTuple):
    """A command, the mere name of one, or a snippet of ``python`` or ``yaml``; and where it stands."""

    kind: str
    text: str
    line: int


def passages(document: str) -> list[Passage]:
    found = []
    for token in (
        MarkdownIt("commonmark").enable("table").parse((ROOT / document).read_text(encoding="utf-8"))
    ):
        line = token.map[0] + 1 if token.map else 0
        language = token.info.split()[0] if token.info.strip() else ""
        if token.type == "fence" and language in ("python", "yaml"):
            found.append(Passage(language, token.content, line))
        elif token.type in ("fence", "code_block"):
            found += [Passage("command", text, line) for text in commands(token.content, language)]
        for child in token.children or ():
            if child.type == "code_inline" and is_command(child.content) and " " in child.content:
                text = child.content.replace(" …", "")
                named = re.fullmatch(r"(ssl-weighting|python|python -m) [\w/][\w./-]*", text)
                found.append(Passage("name" if named else "command", text, line))
    return found


def commands(block: str, language: str) -> list[str]:
    """The commands of a block, continued lines joined. In a block of commands there is nothing else."""
    lines = [line for line in re.sub(r"\\\n\s*", "", block).splitlines() if line.strip()]
    prompted = [line[2:] for line in lines if line.startswith("$ ")]
    lines = prompted or [line for line in lines if not line.startswith("#")]
    if not lines or not (prompted or language in ("bash", "console", "sh", "shell") or is_command(lines[0])):
        return []
    return lines


def is_command(line: str) -> bool:
    """Whether a line begins with a program that this test knows."""
    words = [word for word in line.split() if not re.match(r"[A-Z_]+=", word)]
    return bool(words) and words[0] in {*PROGRAMS, *SHELL}


class Workshop:
    """A folder in which the placeholders of documents exist; the commands of one document run there in turn."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Path]) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        for seed, name in enumerate(("RUN", "RUN_2")):
            shutil.copytree(given["tiny_run"], folder / name)
            config = folder / name / "config.yaml"
            config.write_text(config.read_text().replace("seed_everything: 0", f"seed_everything: {seed}"))
        for name in ("data", "lab/results"):
            (folder / name).mkdir(parents=True)
        for name in ("DIR", "data/cifar10", "data/svhn"):
            shutil.copytree(given["image_sets"], folder / name)
        for name in ("tiny_bert", "tiny_imdb"):
            (folder / name).symlink_to(given[name])
        for name in ("NAME", "RECIPE"):
            shutil.copy(ROOT / "recipes" / "digits_uda.yaml", folder / name)

    def do(self, passage: Passage) -> None:
        if passage.kind == "python":
            self.run_python(passage.text)
        elif passage.kind == "yaml":
            self.run_yaml(passage)
        elif passage.kind == "name":
            *program, name = passage.text.split()
            if program == ["python", "-m"]:
                assert importlib.util.find_spec(name), name
            else:
                assert name in NAMES if program == ["ssl-weighting"] else (ROOT / name).is_file()
        elif passage.text.split()[0] in SHELL:
            subprocess.run(["bash", "-euc", passage.text], check=True)
        else:
            for words in simple_commands(passage.text):
                self.run(words)

    def run(self, words: list[str]) -> None:
        while words and (assignment := re.fullmatch(r"(?P<name>[A-Z_]+)=(?P<value>.*)", words[0])):
            self.monkeypatch.setenv(assignment["name"], assignment["value"])
            words = words[1:]
        if not words:
            return
        assert words[0] in PROGRAMS, f"{words[0]}: unknown here; run it, or say in LOOKED_AT why not"
        PROGRAMS[words[0]](self, words[1:])

    def ssl_weighting(self, words: list[str]) -> None:
        """Run it in this process, with less to do."""
        with self.monkeypatch.context() as patch:
            if words[0] in ONLY_PARSED:
                assert all((ROOT / word).exists() for word in words if word.endswith((".yaml", ".yml")))
                parse_only(lambda: main(words), patch)
                self.leave_what_it_would(words)
                return
            try:
                status = main(self.supplied(words) + self.budget(words))
            except SystemExit as end:  # --help
                status = end.code or 0
        assert status == 0

    def laboratory(self, words: list[str]) -> None:
        """Run it in this process, with less to do: of a study only the command line is parsed, many whole runs."""
        with self.monkeypatch.context() as patch:
            if words[:1] == ["study"]:
                assert all((ROOT / word).exists() for word in words if word.endswith((".yaml", ".yml")))
                parse_only(lambda: laboratory(words), patch)
                if "--out" in words:  # for those that follow, an earlier one's table
                    out = self.folder / words[words.index("--out") + 1]
                    out.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / "docs" / "results" / "digits_dirty_pool.csv", out / "runs.csv")
                return
            cut_benches(patch)
            words = [str(ROOT / word) if word.startswith("lab/studies/") else word for word in words]
            assert laboratory(words) == 0

    def leave_what_it_would(self, words: list[str]) -> None:
        """The output of a command that is only parsed, for those that follow: a study's is an earlier one's table."""
        if "--out" not in words:
            return
        out = self.folder / words[words.index("--out") + 1]
        if words[0] == "paraphrase":
            write_paraphrases(out)

    def supplied(self, words: list[str]) -> list[str]:
        """Make the data that commands are told of; encoders are the tiny one. A second RUN is another."""
        if words.count("RUN") == 2:
            second = words.index("RUN", words.index("RUN") + 1)
            words = [*words[:second], "RUN_2", *words[second + 1 :]]
        if words[0] in ("predict", "embed") and "--on" in words:
            path = self.folder / words[words.index("--on") + 1]
            if path.suffix:
                write_texts(path)
            elif path.name not in ("unlabeled", "validation", "test"):
                write_images(path, classes=0)
        if words[0] != "init":
            return words
        for option, value in pairwise(words):
            path = self.folder / value
            if path.exists() or option not in ("--images", "--unlabelled", "--unlabeled", "--text", "--test"):
                continue
            if "--text" in words:
                write_texts(path)
            else:
                write_images(path, classes=0 if option.startswith("--unlab") else 3)
        return words if "--images" in words else [*words, "--encoder", "tiny_bert"]

    def budget(self, words: list[str]) -> list[str]:
        if words[0] != "fit" or any("help" in word for word in words):
            return []
        config = words[words.index("--config") + 1] if "--config" in words else ""
        options = [*BUDGET]
        if re.search("cifar10|svhn", config):
            options += SMALL_IMAGES
        elif "imdb" in config:
            options += SMALL_TEXTS
        if "--ckpt_path" in words:  # goes on, so there has to be something left to do
            options[1] = "3"
        return options

    def python(self, words: list[str]) -> None:
        if words[:2] == ["-m", "ssl_weighting"]:
            self.ssl_weighting(words[2:])
        elif words[:2] == ["-m", "lab"]:
            self.laboratory(self.supplied(words[2:]))
        elif words[0] == "-m" and words[1].startswith("lab."):
            with self.monkeypatch.context() as patch:
                patch.setattr(sys, "argv", words[1:])
                parse_only(lambda: runpy.run_module(words[1], run_name="__main__"), patch)
        elif words[0] == "-m":
            assert importlib.util.find_spec(words[1]), words[1]
        else:
            script = ROOT / words[0]
            with self.monkeypatch.context() as patch:
                patch.setattr(sys, "argv", [str(script), *words[1:]])
                patch.syspath_prepend(str(script.parent))
                parse_only(lambda: runpy.run_path(str(script), run_name="__main__"), patch)

    def torchrun(self, words: list[str]) -> None:
        self.python(words[words.index("-m") :])

    def make(self, words: list[str]) -> None:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words) <= set(targets)

    def docker(self, words: list[str]) -> None:
        text = (ROOT / "docker" / "Dockerfile").read_text()
        if words[0] == "build":
            parser = argparse.ArgumentParser(exit_on_error=False)
            parser.add_argument("-f", "--file", required=True)
            parser.add_argument("-t", "--tag", required=True)
            parser.add_argument(
                "--target", choices=re.findall(r"^FROM .* AS (\S+)", text, flags=re.MULTILINE)
            )
            parser.add_argument("--build-arg", action="append", default=[])
            parser.add_argument("--secret", action="append", default=[])
            parser.add_argument("context")
            given = parser.parse_args(words[1:])
            assert (ROOT / given.file).is_file()
            assert {a.split("=")[0] for a in given.build_arg} <= set(
                re.findall(r"^ARG (\w+)", text, re.MULTILINE)
            )
            assert {s.split(",")[0] for s in given.secret} <= set(
                re.findall(r"type=secret,(id=[\w.]+)", text)
            )
        else:
            assert words[0] == "run"
            (image,) = [i for i, word in enumerate(words) if word.startswith("ssl-weighting:")]
            self.ssl_weighting(words[image + 1 :])

    def smoke(self, words: list[str]) -> None:
        assert os.access(ROOT / "docker" / "smoke.sh", os.X_OK)
        assert words[0].startswith("ssl-weighting:")

    def pip(self, words: list[str]) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extras in re.findall(r"\[(.*?)\]", " ".join(words)):
            assert set(extras.split(",")) <= project["optional-dependencies"].keys()

    def mkdir(self, words: list[str]) -> None:
        for word in words:
            if word != "-p":
                Path(word).mkdir(parents=True, exist_ok=True)

    def nothing(self, words: list[str]) -> None:
        """See LOOKED_AT."""

    def run_python(self, text: str) -> None:
        """Execute it; where the first line names a file, that file is importable from then on."""
        name = re.match(r"# (\w+)\.py\n", text)
        if name:
            (self.folder / f"{name[1]}.py").write_text(text, encoding="utf-8")
            importlib.invalidate_caches()
            self.monkeypatch.delitem(sys.modules, name[1], raising=False)
            importlib.import_module(name[1])
        else:
            exec(compile(text, "snippet", "exec"), {"__name__": "__main__"})

    def run_yaml(self, passage: Passage) -> None:
        """A whole recipe is trained by itself, a part of one on top of a recipe."""
        recipe = self.folder / f"snippet_{passage.line}.yaml"
        recipe.write_text(passage.text, encoding="utf-8")
        content = yaml.safe_load(passage.text)
        below = [] if {"data", "model"} <= content.keys() else ["--config", "digits_uda"]
        cut = []
        if content.get("data", {}).get("class_path") == "StreamedImages":
            given = content["data"]["init_args"]
            write_images(self.folder / given["labeled"], classes=3)
            write_shard(self.folder / given["pool"].replace("*", "0"), count=40)
            cut = ["--data.pool_size", "40"]
        self.ssl_weighting(["fit", *below, "--config", str(recipe), *cut])


PROGRAMS = {
    "ssl-weighting": Workshop.ssl_weighting,
    "python": Workshop.python,
    "make": Workshop.make,
    "docker": Workshop.docker,
    "docker/smoke.sh": Workshop.smoke,
    "pip": Workshop.pip,
    "mkdir": Workshop.mkdir,
    "torchrun": Workshop.torchrun,
    "cd": Workshop.nothing,
    ".": Workshop.nothing,
}


def write_shard(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True)
    file = io.BytesIO()
    Image.new("RGB", (20, 20), "green").save(file, "PNG")
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(file.getvalue())
            tar.addfile(member, io.BytesIO(file.getvalue()))


def simple_commands(line: str) -> list[list[str]]:
    """The words of each command of a line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word in ("&&", ";", "|"):
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def cut_benches(patch: pytest.MonkeyPatch) -> None:
    """Benchmarks parse their options as ever, then measure a few rows of a tiny network."""
    tiny = {"network": "wrn-10-1", "labeled": 4, "unlabeled": 6, "validation": 4, "rounds": 1}
    for module in (influence, per_example_gradient):
        parse = module.parse
        cut = lambda *given, parse=parse, **named: dataclasses.replace(  # noqa: E731
            parse(*given, **named), **tiny, float64_examples=3, memory=False
        )
        patch.setattr(module, "parse", cut)
    patch.setattr(influence, "ROWS", [("exact", "last_layer"), ("identity", "all")])
    parse_throughput = throughput.parse
    small = {
        "methods": ("uda",),
        "precisions": ("32-true",),
        "variants": ("plain",),
        "labeled": 2,
        "depth": 10,
    }
    patch.setattr(throughput, "_peer", lambda text: tuple(text.split("=")))  # whose checkouts are not here
    patch.setattr(
        throughput,
        "parse",
        lambda *given: dataclasses.replace(
            parse_throughput(*given), **small, unlabeled=4, width=1, rounds=1, peers=()
        ),
    )
    patch.setattr(memory, "run", lambda steps, device: {"steps": steps})  # minutes of training


class _ParsedError(Exception):
    pass


def parse_only(program: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Run a program as far as its command line is understood."""
    real = argparse.ArgumentParser.parse_known_args

    def parse_known_args(parser, *given, **named):
        real(parser, *given, **named)
        raise _ParsedError

    def parse_args(parser, *given, **named):
        _, unknown = real(parser, *given, **named)
        if unknown:
            parser.error(f"unrecognized arguments: {unknown}")
        raise _ParsedError

    patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(_ParsedError):
        program()


def write_images(folder: Path, classes: int) -> None:
    """Small pictures of random pixels, others in a folder of another name: a folder a class, or of no class."""
    draw = np.random.default_rng(list(folder.name.encode()))
    for name in [f"class_{i}" for i in range(classes)] or ["."]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(20):
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def write_texts(path: Path) -> None:
    """A table of text and label, half of the labels empty."""
    rows = [
        {"text": f"{word} {word} film number {i}", "label": label if i % 2 else ""}
        for i in range(40)
        for word, label in (("good", "positive"), ("bad", "negative"))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["text", "label"])
        table.writeheader()
        table.writerows(rows)


def write_paraphrases(path: Path) -> None:
    """What `paraphrase` makes, of the small reviews."""
    texts = [
        text
        for name in ("train", "unsup")
        for text in pq.read_table(Path("tiny_imdb") / f"{name}.parquet")["text"].to_pylist()
    ]
    pq.write_table(pa.table({"text": texts, "paraphrase": [f"{text} again" for text in texts]}), path)


@pytest.fixture(scope="session")
def given(tiny_run, image_sets, tiny_bert, tiny_imdb):
    """What a workshop is furnished with, by name."""
    return {"tiny_run": tiny_run, "image_sets": image_sets, "tiny_bert": tiny_bert, "tiny_imdb": tiny_imdb}


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_snippets_work(document, tmp_path, monkeypatch, given):
    todo = list({(p.kind, p.text): p for p in passages(document)}.values())
    if not todo:
        pytest.skip("names no command")
    workshop = Workshop(tmp_path, monkeypatch, given)
    failed = []
    for passage in todo:
        said = io.StringIO()
        try:
            with redirect_stdout(said):
                workshop.do(passage)
        except (Exception, SystemExit) as error:
            failed.append(
                f"{document}:{passage.line}: {passage.text.strip()}\n  {type(error).__name__}: {error}"
            )
    assert not failed, "\n".join(failed)


def test_the_demo_is_run_by_ci():
    assert "make demo\n" in (ROOT / ".ci" / "run").read_text()
    assert re.search(
        r"^demo:.*\n\t.*ssl-weighting demo$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "ssl-weighting fit --config digits_uda --model.inner_step 3",
        "ssl-weighting fit --config no_such_recipe",
        "ssl-weighting no_such_command",
        "ssl-weighting demo --no-such-option",
        "python -m lab study lab/studies/no_such_study.yaml",
        "ssl-weighting weights RUN --no-such-option",
        "python -m lab.claims.influence_truth --no-such-option 3",
        "python -m lab.claims.no_such_script",
        "make no-such-target",
        "docker build -f docker/Dockerfile --build-arg NO_SUCH=1 -t x .",
        "docker run ssl-weighting:cpu fit --config no_such_recipe",
        "pip install 'ssl-weighting[no_such_extra]'",
        "no-such-program",
    ],
)
def test_a_wrong_command_is_noticed(wrong, tmp_path, monkeypatch, given):
    workshop = Workshop(tmp_path, monkeypatch, given)
    with pytest.raises((AssertionError, SystemExit, OSError, ImportError, argparse.ArgumentError)):
        workshop.do(Passage("command", wrong, 1))
