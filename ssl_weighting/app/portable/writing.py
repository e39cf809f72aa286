"""A folder is made of a trained model, and what it predicts is held against the model's own predictions."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ssl_weighting.app.checkpoints import Saved
from ssl_weighting.app.portable.formats import write_graph, write_safetensors
from ssl_weighting.app.portable.inputs import TOKENIZER, InputOptions
from ssl_weighting.app.portable.model import PortableModel, write_description
from ssl_weighting.app.portable.network import (
    ENCODER,
    Architecture,
    Network,
    backbones,
    for_a_graph,
    merge_lora,
    plain_arguments,
    pretrained_of,
)
from ssl_weighting.app.portable.readme import facts_of, readme
from ssl_weighting.app.trained import TrainedModel
from ssl_weighting.backbones.base import Classifier
from ssl_weighting.data import SSLData
from ssl_weighting.data.images import Images
from ssl_weighting.data.text import TextData
from ssl_weighting.errors import UserError, one_line
from ssl_weighting.files import home_path

TOLERANCE = 1e-4
"""Largest difference of a probability with which a folder is handed out."""
COMPARED = 8
"""Made-up examples that the comparison is made on."""
LEAST = 1e-29
"""Probabilities below are not compared: a mixture ends at 1e-30."""


def write_folder(folder: Path, name: str, saved: Saved, model: TrainedModel, file_format: str) -> float:
    """Write a model, its preprocessing and its README.

    Args:
        folder: An empty folder.
        name: What it will be called.
        saved: The checkpoint.
        model: What it was restored to, on the CPU.
        file_format: See :data:`~ssl_weighting.app.portable.formats.FILES`.

    Returns:
        The largest difference of a probability on made-up examples between the model and what the folder holds.

    Raises:
        UserError: If the model cannot be kept in that format, or predicts something else from there.
    """
    network, inputs = _network(model), _inputs(model.data)
    merge_lora(network)
    if isinstance(model.data, TextData):
        _write_tokenizer(model.data, folder)
    made_up = _made_up(model.data, inputs)
    architecture = None
    if file_format == "safetensors":
        architecture = _architecture(network, saved, model, folder)
        write_safetensors(network, folder)
    else:
        (_, arrays) = next(iter(inputs.batches(made_up, folder)[1]))
        try:
            with for_a_graph(network, inputs.shape[-2:]):
                write_graph(network, folder, file_format, inputs.kind, arrays, inputs.max_length)
        except Exception as error:  # whatever the exporter meets in a network
            raise UserError(
                f"--format {file_format}: {type(network.backbone).__name__} does not become such a graph "
                f"({one_line(error)[:160]}); give --format safetensors"
            ) from error
    write_description(folder, file_format, model.class_names, inputs, architecture)
    found, expected = PortableModel(folder, "cpu").probabilities(made_up), model.probabilities(made_up)
    difference = float(np.abs(found - expected).max())
    if not (difference <= TOLERANCE and _difference_of_logarithms(found, expected) <= 10 * TOLERANCE):
        raise UserError(
            f"RUN={saved.path}: what was exported predicts otherwise, by {difference:.2g}; {model.data.name} prepares "
            "its examples in a way that an exported folder does not know: use ssl_weighting.load(RUN)"
        )
    text = readme(name, facts_of(saved, model), file_format, inputs, model.class_names, difference)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return difference


def _network(model: TrainedModel) -> Network:
    """A copy of the averaged network without heads that only training needs."""
    classifier = cast(Classifier, copy.deepcopy(model.module.ema.model))
    for head in [*classifier.heads]:
        if head != "classifier":
            del classifier.heads[head]
    mean, std = ((), ()) if isinstance(model.data, TextData) else (model.data.mean, model.data.std)
    return Network(classifier, copy.deepcopy(model.module.encoder), mean, std, model.module.channels_last)


def _inputs(data: SSLData) -> InputOptions:
    """What a data set's model takes.

    Raises:
        UserError: If its examples are neither texts nor arrays of one shape.
    """
    if isinstance(data, TextData):
        return InputOptions("texts", replacements=data.replacements, max_length=data.max_length)
    if isinstance(data, Images):
        levels = None if data.levels is None else (float(data.levels[0]), float(data.levels[1]))
        return InputOptions("images", (3, data.size, data.size), "uint8", levels)
    example = data.load(train=not data.has_test).fetch(torch.tensor([0]))
    if not isinstance(example, Tensor):
        raise UserError(
            f"data={type(data).__name__}: its examples are no arrays but {type(example).__name__}, which no exported "
            "folder takes; use ssl_weighting.load(RUN)"
        )
    dtype = torch.float32 if example.dtype == torch.float64 else example.dtype
    return InputOptions("arrays", tuple(example.shape[1:]), str(dtype).removeprefix("torch."))


def _architecture(network: Network, saved: Saved, model: TrainedModel, folder: Path) -> Architecture:
    """What the network is built from anew; copies the configuration of a network that is named by its folder.

    Raises:
        UserError: If it is made of code that the folder cannot hold.
    """
    backbone, options = network.backbone, saved.configuration["model"]
    own = type(backbone)
    if backbones().get(own.__name__) is not own:
        raise UserError(
            f"--format safetensors: model.backbone={own.__name__} is made of code of your own, which no folder holds; "
            "give --format onnx or --format torch"
        )
    given = dict(options["backbone"].get("init_args") or {})
    arguments = plain_arguments(backbone, given)
    if arguments.get("name") == ENCODER and pretrained_of(backbone) is None:
        (folder / ENCODER).mkdir()
        shutil.copy(home_path(given["name"]) / "config.json", folder / ENCODER)
    mixture = saved.own.get("handed_over") or {}
    share = mixture.get("share")
    features = options.get("features") or {}
    return Architecture(
        backbone=own.__name__,
        arguments=arguments,
        frozen=network.encoder is not None,
        hidden=tuple(features.get("hidden") or ()),
        resize=features.get("resize"),
        num_classes=model.module.num_classes,
        symmetric_binary_head=model.module.symmetric_binary_head,
        share=share,
        temperatures=tuple(mixture.get("temperatures", ())),
        mean=tuple(network.mean.tolist()),
        std=tuple(network.std.tolist()),
        channels_last=network.channels_last,
    )


def _write_tokenizer(data: TextData, folder: Path) -> None:
    """The tokenizer in one file, which cuts and pads as the run did."""
    from tokenizers import Tokenizer

    own = data.tokenizer
    tokenizer = Tokenizer.from_str(own.backend_tokenizer.to_str())
    tokenizer.enable_truncation(data.max_length, direction="left" if data.keep == "end" else "right")
    tokenizer.enable_padding(pad_id=int(own.pad_token_id or 0), pad_token=str(own.pad_token or "[PAD]"))
    tokenizer.save(str(folder / TOKENIZER))


def _made_up(data: SSLData, inputs: InputOptions) -> Any:
    """Examples of the run's kind, always the same."""
    draw = np.random.default_rng(0)
    if isinstance(data, TextData):
        words = sorted(word for word in data.tokenizer.get_vocab() if word.isalpha())
        lengths = (1, 2, 3, 5, 8, 13, 21, 2 * data.max_length)
        return [" ".join(draw.choice(words, length)) for length in lengths]
    shape = (COMPARED, *inputs.shape)
    if len(inputs.shape) < 3 or inputs.dtype != "uint8":
        return draw.standard_normal(shape).astype(inputs.dtype)
    *_, height, width = shape  # patches of colour: of noise, networks are all too sure
    patches = draw.integers(0, 256, (*shape[:-2], 4, 4)).astype(inputs.dtype)
    return patches.repeat(-(-height // 4), -2).repeat(-(-width // 4), -1)[..., :height, :width]


def _difference_of_logarithms(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest of log p, as a share of it where it is above 1: where one class has all, probabilities tell nothing."""
    told = (found > LEAST) & (expected > LEAST)
    logs = np.log(expected[told])
    return float((np.abs(np.log(found[told]) - logs) / np.maximum(np.abs(logs), 1)).max(initial=0))
