"""What the documentation says of the code's form, held against the code."""

import dataclasses
import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ", (ROOT / "docs" / "glossary.md").read_text(), flags=re.M)[1:]
NAMES = [name for _, code in ROWS for name in re.findall(r"`([\w.]+)`", code)]


def layers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return [re.findall(r"[\w.]+", layer.replace("ssl_weighting.", "")) for layer in contracts[0]["layers"]]


def test_the_page_shows_the_contract_that_lint_checks():
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.partition("## Who may know whom")[2].partition("## ")[0]
    shown = [line.strip().split(", ") for line in section.splitlines() if line.startswith("    ")]
    assert [sorted(layer) for layer in shown] == [sorted(layer) for layer in layers()]


def test_every_part_of_the_package_is_in_the_contract_and_on_the_page():
    parts = {
        p.stem
        for p in (ROOT / "ssl_weighting").iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    parts -= {"__init__", "__main__"}
    assert parts == {name for layer in layers() for name in layer} - {"lab"}
    text = (ROOT / "docs" / "architecture.md").read_text()
    for part in parts - {"errors", "files", "plugins", "checks"}:
        assert re.search(rf"ssl_weighting/{part}\b|`{part}\.py`", text), part


@pytest.mark.parametrize("name", NAMES)
def test_every_word_is_in_the_code(name):
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        break
    for part in parts[length:]:
        if dataclasses.is_dataclass(found) and part in {field.name for field in dataclasses.fields(found)}:
            return
        found = getattr(found, part)


def test_each_word_stands_once_and_there_are_enough_of_them():
    words = [word for word, _ in ROWS]
    assert len(words) >= 25
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("folder", ["ssl_weighting", "lab"])
def test_no_file_is_too_long_to_read(folder):
    lengths = {p: len(p.read_text().splitlines()) for p in (ROOT / folder).rglob("*.py")}
    assert {str(p): n for p, n in lengths.items() if n > 400} == {}
