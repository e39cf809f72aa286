"""README.md of an exported folder, written from its run."""

from __future__ import annotations

from dataclasses import dataclass

from ssl_weighting import __version__
from ssl_weighting.app.checkpoints import Saved
from ssl_weighting.app.portable.formats import FILES, NAMES
from ssl_weighting.app.portable.inputs import TOKENIZER, InputOptions
from ssl_weighting.app.portable.model import DESCRIPTION
from ssl_weighting.app.runs import Run
from ssl_weighting.app.summary import told
from ssl_weighting.app.trained import TrainedModel
from ssl_weighting.errors import UserError

ERRORS = {
    "test/error": "test error",
    "baseline/test_error": "test error of a linear probe on the same labels, without the pool",
    "validation/error": "validation error, on labels that weights were learned on",
    "pool/error": "cross-validated error of the model with the pool",
    "baseline/error": "cross-validated error of a linear probe on the same labels, without the pool",
}
"""Figures of ``metrics.csv`` that are told, in this order."""
TEXTS = "['a text', 'another']"


@dataclass(frozen=True)
class Facts:
    """What a run says of itself.

    Attributes:
        lines: Of what the model was made.
        figures: Errors, shares, by name; empty where nothing was recorded, or the checkpoint lies outside its run.
    """

    lines: list[str]
    figures: dict[str, float]


def facts_of(saved: Saved, model: TrainedModel) -> Facts:
    """What is known of the run that a checkpoint is of."""
    options = saved.configuration["model"]
    algorithm = str(options["algorithm"]["class_path"]).rpartition(".")[2]
    lines = [
        f"{len(model.class_names)} classes: {', '.join(model.class_names[:40])}"
        + (", ..." if len(model.class_names) > 40 else ""),
        f"{algorithm} on {model.data.name}, {saved.step} steps, seed {saved.own['seed']}, averaged parameters",
    ]
    if mixture := saved.own.get("handed_over"):
        lines.append(f"handed over: {told(mixture['share'])}")
    if saved.run is None:
        return Facts(lines, {})
    run = Run(saved.run)
    try:
        split, metrics = run.split, run.metrics
    except UserError:  # a run that was cut short may lack either; the model is whole
        return Facts(lines, {})
    lines.insert(1, f"{len(split.labeled)} labelled examples train, {len(split.unlabeled)} are in the pool")
    return Facts(lines, {name: float(metrics[name][1][-1]) for name in ERRORS if name in metrics})


def readme(
    name: str, facts: Facts, file_format: str, inputs: InputOptions, classes: list[str], difference: float
) -> str:
    """The page.

    Args:
        name: Of the folder.
        facts: Of the run.
        file_format: See :data:`~ssl_weighting.app.portable.formats.FILES`.
        inputs: What the model takes.
        classes: Their names.
        difference: See :func:`~ssl_weighting.app.portable.writing.write_folder`.
    """
    figures = [f"- {ERRORS[key]}: {100 * value:.2f} %" for key, value in facts.figures.items()]
    told_errors = (
        [*figures, "", "One split and one seed; the run recorded no interval."]
        if figures
        else ["The run's record was not beside the checkpoint, or holds no error."]
    )
    parts = [
        f"# {name}",
        f"A classifier, exported by ssl-weighting {__version__} as {file_format} (`{FILES[file_format]}`).",
        "\n".join(f"- {line}" for line in facts.lines),
        "\n".join(told_errors),
        "## Use",
        *_use(name, file_format, inputs),
        f"`{DESCRIPTION}` holds the class names, in the order of the probabilities, and what the model takes. On made-up "
        f"examples its probabilities differ from the run's by {difference:.0e} at most.",
    ]
    return "\n\n".join(parts) + "\n"


def _use(name: str, file_format: str, inputs: InputOptions) -> list[str]:
    """What is taken, and lines of Python that run as they stand but for the examples' names."""
    parts = [f"It takes {inputs.said()}."]
    if file_format == "safetensors":
        given = {"images": '["1.jpg", "2.jpg"]', "arrays": 'np.load("examples.npy")', "texts": TEXTS}[
            inputs.kind
        ]
        first = "import numpy as np\n\n" if inputs.kind == "arrays" else ""
        lines = f"import ssl_weighting\n\nmodel = ssl_weighting.load({name!r})\nprint(model.predict({given}))"
        return [*parts, f"```python\n{first}{lines}\n```"]
    parts.append(f"```python\n{_alone(name, file_format, inputs)}\n```")
    if inputs.kind == "images":
        parts.append(
            "Transparent images, and grey ones of more than 8 bits, are prepared as the run did by "
            "`ssl_weighting.load` alone, for `onnx` and `safetensors`."
        )
    if file_format == "torch":
        parts.append(
            "A program of torch may run code while it is read: read one only if you trust where it is from. For that "
            "reason `ssl_weighting.load` does not read it."
        )
    return parts


def _alone(name: str, file_format: str, inputs: InputOptions) -> str:
    """Python that needs nothing of this program."""
    file = f"{name}/{FILES[file_format]}"
    imports, load, run = {
        "onnx": (
            "import onnxruntime",
            f"session = onnxruntime.InferenceSession({file!r}, providers=['CPUExecutionProvider'])",
            "session.run(None, {" + ", ".join(f"{one!r}: {one}" for one in NAMES[inputs.kind]) + "})[0]",
        ),
        "torch": (
            "import torch",
            f"network = torch.export.load({file!r}).module()",
            "network(" + ", ".join(f"torch.from_numpy({one})" for one in NAMES[inputs.kind]) + ").numpy()",
        ),
    }[file_format]
    library = {
        "images": "\nfrom PIL import Image, ImageOps",
        "texts": "\nfrom tokenizers import Tokenizer",
        "arrays": "",
    }
    return "\n".join(
        [
            f"import json\n\nimport numpy as np\n{imports}{library[inputs.kind]}\n",
            f"classes = json.load(open({f'{name}/{DESCRIPTION}'!r}, encoding='utf-8'))['classes']",
            load,
            *_examples(name, inputs),
            f"probabilities = {run}",
            "print([classes[row.argmax()] for row in probabilities])",
        ]
    )


def _examples(name: str, inputs: InputOptions) -> list[str]:
    """Lines that make the arrays a graph takes."""
    if inputs.kind == "arrays":
        return ["arrays = np.load('examples.npy')"]
    if inputs.kind == "images":
        size = f"({inputs.shape[-1]}, {inputs.shape[-1]})"
        return [
            "\n\ndef pixels(path):",
            "    image = Image.open(path)",
            f"    image.draft('RGB', {size})",
            "    image = ImageOps.exif_transpose(image).convert('RGB')",
            f"    return np.asarray(ImageOps.fit(image, {size}, Image.Resampling.BILINEAR)).transpose(2, 0, 1)",
            "\n\nimages = np.stack([pixels(path) for path in ['1.jpg', '2.jpg']])",
        ]
    clean, first = "text.strip()", []
    if inputs.replacements:
        first = ["import re\n\n\ndef cleaned(text):", "    text = text.strip()"]
        first += [
            f"    text = re.sub({pattern!r}, {instead!r}, text)" for pattern, instead in inputs.replacements
        ]
        first += ["    return text\n\n"]
        clean = "cleaned(text)"
    return [
        *first,
        f"tokenizer = Tokenizer.from_file({f'{name}/{TOKENIZER}'!r})",
        f"found = tokenizer.encode_batch([{clean} for text in {TEXTS}])",
        "input_ids = np.array([one.ids for one in found], np.int64)",
        "attention_mask = np.array([one.attention_mask for one in found], np.int64)",
    ]
