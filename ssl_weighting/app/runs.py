"""A run's folder, opened for reading: every file checked, and the data that the run was trained on."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ssl_weighting.errors import DataWarning, UserError, named

if TYPE_CHECKING:  # torch is slow to import
    from ssl_weighting.data.module import SSLData
    from ssl_weighting.data.near_duplicates import Pairs
    from ssl_weighting.data.split import Split

WEIGHT_COLUMNS = ("index", "weight", "updates", "influence", "pseudo_label", "confidence", "label")
OWN = "own_probability"
"""A further column, of runs on features that stay as they are."""
BELONGING = "belonging.safetensors"
"""The file of such runs by which new examples get theirs."""
OWN_SCORE = "own_score"
"""A further column, of methods that say themselves what is of a known class."""


@dataclass(frozen=True)
class WeightHistory:
    """How Λ was spread at every evaluation.

    Attributes:
        steps: (T,) int64, θ steps, rising.
        low: (T,) float64, lower edge of the first bin: the smallest weight.
        high: (T,) float64, upper edge of the last bin: the largest weight.
        counts: (T, bins) float64, weights in every one of the equal bins between.
    """

    steps: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray


def find_run(given: Path, holds: str = "config.yaml", key: str = "RUN") -> Path:
    """The folder of a run.

    Args:
        given: The folder itself, or one that holds a single run, such as ``runs/<recipe>``.
        holds: What tells a run by: a file in its folder.
        key: What it was given as, for messages: ``RUN``, or ``run`` in Python.

    Raises:
        UserError: If there is none, or several; names what to give.
    """
    what = named(key, given)
    if not given.is_dir():
        raise UserError(
            f"{what}: no such folder or file; a run lies in runs/<recipe>/<time>_seed<N>_<id>, fit prints its folder"
        )
    if (given / holds).is_file():
        return given
    if (given / "config.yaml").is_file():
        raise UserError(f"{what}: has no {holds}; the run was stopped before it wrote one")
    inside = {path: path.joinpath(holds) for path in given.iterdir() if path.joinpath(holds).is_file()}
    if len(inside) == 1:
        return next(iter(inside))
    if inside:
        newest = sorted(inside, key=lambda path: inside[path].stat().st_mtime_ns, reverse=True)
        listed = ", ".join(map(str, newest[:3])) + (", ..." if len(newest) > 3 else "")
        raise UserError(f"{what}: holds {len(inside)} runs; give one of them, the newest first: {listed}")
    deeper = next(iter(sorted(given.glob(f"*/*/{holds}"))), None)
    hint = (
        f"did you mean {str(deeper).removesuffix(f'/{holds}')}?"
        if deeper
        else "fit prints the folder of its run"
    )
    raise UserError(f"{what}: neither a run (it has no {holds}) nor a folder that holds one; {hint}")


class Run:
    """What a run left on disk; nothing is written, no code in it is run.

    Files are read when they are asked for.

    Args:
        directory: The run's folder, ``runs/<recipe>/<time>_seed<N>_<id>``, or one that holds a single run.

    Raises:
        UserError: If there is none. Every property and method raises it for a missing or damaged file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = find_run(directory).resolve()

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.directory.name

    @property
    def recipe(self) -> str:
        """Name of the recipe: the folder that the run lies in."""
        return self.directory.parent.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole resolved configuration."""
        path = self.directory / "config.yaml"
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise _damaged(path, error) from None
        if not isinstance(content, dict) or not all(
            isinstance(content.get(k), dict) for k in ("data", "model", "trainer")
        ):
            raise UserError(f"{path}: not the configuration of a run: data, model or trainer is missing")
        return content

    @property
    def initial_weight(self) -> float:
        """The weight that all examples began with."""
        return float(self.config["model"]["weighting"]["init"])

    @cached_property
    def metrics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Every logged scalar: its steps (n,) int64, rising, and values (n,) float64. The newest of a step counts."""
        found: dict[str, dict[int, float]] = {}
        for row in self._rows("metrics.csv"):
            step = int(row["step"])
            for name, text in row.items():
                if text and name != "step":
                    found.setdefault(name, {})[step] = float(text)
        return {
            name: (np.array(sorted(values)), np.array([values[s] for s in sorted(values)]))
            for name, values in found.items()
        }

    @cached_property
    def weight_history(self) -> WeightHistory | None:
        """How Λ was spread at every evaluation; ``None`` for a run of a version that did not keep it."""
        if not (self.directory / "weights_history.csv").is_file():
            return None
        rows = {int(row["step"]): row for row in self._rows("weights_history.csv")}
        if not rows:
            return None
        steps = sorted(rows)
        bins = [name for name in rows[steps[0]] if name.startswith("bin_")]

        def column(name: str) -> np.ndarray:
            return np.array([float(rows[step][name]) for step in steps])

        path = self.directory / "weights_history.csv"
        try:
            return WeightHistory(
                np.array(steps), column("low"), column("high"), np.stack([column(b) for b in bins], -1)
            )
        except (KeyError, ValueError) as error:
            raise _damaged(path, error) from None

    def _rows(self, name: str) -> list[dict[str, str]]:
        """Rows of a CSV file with a ``step`` and otherwise numbers; a last row that was cut off is left out."""
        path = self.directory / name
        try:
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if None not in row.values() and None not in row]
            for row in rows:
                int(row["step"])
                for text in row.values():
                    float(text or "nan")
        except (OSError, UnicodeDecodeError, ValueError, KeyError, csv.Error) as error:
            raise _damaged(path, error) from None
        return rows

    @cached_property
    def weights(self) -> pa.Table:
        """``weights.parquet``: a row an unlabelled example; see ``callbacks.run_files.weights_table``."""
        path = self.directory / "weights.parquet"
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, error) from None
        if missing := [name for name in WEIGHT_COLUMNS if name not in table.column_names]:
            raise UserError(f"{path}: not the weights of a run, {', '.join(missing)} is missing")
        return table

    @cached_property
    def split(self) -> Split:
        """Which examples were labelled, validated and unlabelled."""
        from ssl_weighting.data.split import read_split

        path = self.directory / "split.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            belongs_to = content["data_set"], content["checksum"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _damaged(path, error) from None
        return read_split(path, *belongs_to)

    @cached_property
    def timing(self) -> dict[str, Any]:
        """``timing.json``: see ``callbacks.timing``; empty for a run of a version that did not keep it."""
        path = self.directory / "timing.json"
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            float(content["seconds"]), float(content["evaluation_seconds"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _damaged(path, error) from None
        return dict(content)

    @cached_property
    def near_duplicates(self) -> list[Pairs] | None:
        """``near_duplicates.csv``, by pairs of parts; ``None`` where they were not looked for."""
        from ssl_weighting.data.near_duplicates import PARTS, Pairs

        found: dict[tuple[str, str], list[tuple[int, int, float]]] = {}
        path = self.directory / "near_duplicates.csv"
        rows = _table(path, ("part", "near_part", "index", "near_index", "similarity"))
        try:
            for row in rows or []:
                pair = PARTS[PARTS.index(row["part"])], PARTS[PARTS.index(row["near_part"])]
                numbers = int(row["index"]), int(row["near_index"]), float(row["similarity"])
                found.setdefault(pair, []).append(numbers)
        except ValueError as error:
            raise _damaged(path, error) from None
        return None if rows is None else [Pairs.of(*pair, some) for pair, some in found.items()]

    @cached_property
    def doubtful_labels(self) -> list[dict[str, str]]:
        """``doubtful_labels.csv``: a row a label, the most doubtful first; empty where nothing was cross-validated."""
        path = self.directory / "doubtful_labels.csv"
        rows = _table(path, ("part", "index", "label", "likelier", "probability", "likelier_probability"))
        try:
            for row in rows or []:
                int(row["index"]), float(row["probability"]), float(row["likelier_probability"])
        except ValueError as error:
            raise _damaged(path, error) from None
        return rows or []

    def data(self) -> SSLData:
        """The data module of the run, with the run's own split, ready to be looked at; the test set is not loaded.

        Raises:
            UserError: If the data are not where config.yaml says, or are others than the run was trained on.
        """
        from jsonargparse import ArgumentError, ArgumentParser

        from ssl_weighting.data import SSLData

        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(SSLData, "data")
        try:
            data: SSLData = parser.instantiate_classes(
                parser.parse_object({"data": self.config["data"]})
            ).data
        except ArgumentError as error:
            raise UserError(
                f"{self.directory / 'config.yaml'}: data: {' '.join(str(error).split())}"
            ) from None
        data.split_file, data.evaluate_test = self.directory / "split.json", False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # fit has said it
            data.prepare_data()
            data.setup("fit")
        if data.num_unlabeled != len(self.weights):
            raise UserError(
                f"{self.directory}: weights.parquet has {len(self.weights)} rows, split.json {data.num_unlabeled} "
                "unlabelled examples: they are of different runs"
            )
        return data


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]] | None:
    """Rows of a CSV file, by column; ``None`` where there is no such file."""
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if not {*columns} <= {*(reader.fieldnames or ())} or any(None in row.values() for row in rows):
            raise ValueError(f"without {', '.join(columns)}")
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise _damaged(path, error) from None
    return rows


def _damaged(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(
            f"{path}: no such file; the run was stopped before it wrote one, or it was moved away"
        )
    return UserError(f"{path}: damaged ({type(error).__name__}: {error}); restore it, or take another run")
