"""``ssl-weighting init``: look at somebody's data, and write a recipe and a split that run as they are."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from ssl_weighting.app.init.choice import Choice, said_once, tell
from ssl_weighting.app.init.frozen import frozen_recipe
from ssl_weighting.app.init.images import choose_for_images, image_recipe
from ssl_weighting.app.init.text import ENCODERS, choose_for_texts
from ssl_weighting.data.module import SSLData
from ssl_weighting.data.split import write_split
from ssl_weighting.data.tables import table_ending
from ssl_weighting.errors import UserError
from ssl_weighting.files import check_utf8, home_path, whole_file

OPTIONS = {
    "labeled": "images",
    "unlabeled": "unlabelled",
    "train": "text",
    "test": "test",
    "path_column": "path-column",
    "text_column": "text-column",
    "label_column": "label-column",
}
"""Options of the data sets, and those of ``init`` that they are given by."""


def main(argv: list[str]) -> int:
    """Write a recipe and a split for somebody's data.

    Args:
        argv: ``--images DIR`` or ``--text FILE``, and options; ``--help`` lists them.

    Returns:
        The exit status, 0.

    Raises:
        UserError: If the data is of no use, or a file is there already.
    """
    if argv and not argv[0].startswith("-"):
        option = "--images" if table_ending(home_path(argv[0])) is None else "--text"
        raise UserError(
            f"{argv[0]}: belongs to no option; did you mean init {option} {shlex.quote(argv[0])}?"
        )
    parser = argparse.ArgumentParser(prog="ssl-weighting init", description=__doc__, allow_abbrev=False)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--images", type=home_path, metavar="DIR", help="a folder a class, or a table of path and label"
    )
    data.add_argument(
        "--text", type=home_path, metavar="FILE", help="a table of text and label; empty labels are the pool"
    )
    parser.add_argument(
        "--unlabelled", "--unlabeled", type=home_path, metavar="DIR", help="the pool: a folder of images"
    )
    parser.add_argument(
        "--flip", action="store_true", help="a mirrored image keeps its class: not letters, digits, arrows"
    )
    parser.add_argument(
        "--drop-test-leaks",
        action="store_true",
        help="leave near duplicates of test examples out of the pool",
    )
    parser.add_argument("--test", type=home_path, metavar="PATH", help="test examples, as --images or --text")
    parser.add_argument("--text-column", metavar="NAME", help="text: the column of the texts; default: text")
    parser.add_argument(
        "--path-column", metavar="NAME", help="a table of images: the column of the paths; default: path"
    )
    parser.add_argument(
        "--label-column", metavar="NAME", help="the column of a table's labels; default: label"
    )
    parser.add_argument(
        "--encoder",
        type=os.path.expanduser,
        help="a pretrained encoder: folder, or name on the Hugging Face hub; images: of torchvision or timm too",
    )
    parser.add_argument("--out", type=home_path, metavar="RECIPE", help="default: the data's name, .yaml")
    options = parser.parse_args(argv)
    if options.text and options.unlabelled:
        parser.error("--unlabelled is for images; in a table of texts, leave the pool's labels empty")
    if options.images and options.text_column:
        parser.error("--text-column is for texts")
    if options.text and options.path_column:
        parser.error("--path-column is for images")
    if options.text and options.flip:
        parser.error("--flip is for images")
    if options.drop_test_leaks and not options.test:
        parser.error("--drop-test-leaks needs --test PATH")
    for name in ("images", "text", "unlabelled", "test", "encoder", "out"):
        check_utf8(os.path.abspath(getattr(options, name) or ""), f"--{name}")
    source: Path = options.images or options.text
    recipe = options.out or Path(f"{source.resolve().stem}.yaml")
    split = recipe.with_suffix(".split.json")
    if recipe.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {recipe}: must end in .yaml")
    if not recipe.resolve().parent.is_dir():
        raise UserError(f"--out {recipe}: there is no folder {recipe.resolve().parent}")
    _refuse_to_overwrite(recipe, split)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    columns = {name: getattr(options, name) for name in ("text_column", "path_column", "label_column")}
    choice, module = _chosen(options, source, columns, device)
    body = image_recipe if options.images else frozen_recipe
    assert module.split is not None
    sizes = {part: len(module.sets[part]) for part in ("labeled", "validation", "unlabeled")}
    text = body(choice, module, split.resolve(), sizes)
    _refuse_to_overwrite(recipe, split)
    write_split(module.split, split)
    with whole_file(recipe) as partial:
        partial.write_text(text, encoding="utf-8")
    tell(choice, recipe, split)
    return 0


def _chosen(
    options: argparse.Namespace, source: Path, columns: Mapping[str, str | None], device: str
) -> tuple[Choice, SSLData]:
    """Look at the data; what a person should know of them is told with the choices, or before the error."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            if options.images:
                choice, module = choose_for_images(
                    source,
                    options.unlabelled,
                    options.test,
                    columns,
                    options.flip,
                    device,
                    options.encoder,
                    options.drop_test_leaks,
                )
            else:
                choice, module = choose_for_texts(
                    source,
                    options.test,
                    columns,
                    options.encoder or ENCODERS[device],
                    device,
                    options.drop_test_leaks,
                )
        except UserError as error:
            for message in said_once(said):
                print(f"warning: {_as_typed(message, options)}", file=sys.stderr)
            raise UserError(_as_typed(str(error), options)) from error
    choice.remarks = [_as_typed(remark, options) for remark in said_once(said)]
    return choice, module


def _as_typed(message: str, options: argparse.Namespace) -> str:
    """A data set's message with the options of ``init`` in place of its own."""
    for key, name in OPTIONS.items():
        path = getattr(options, name.replace("-", "_"), None)
        for given in (path.resolve(), path) if isinstance(path, Path) else ():
            message = message.replace(f"data.{key}={given}", f"--{name} {path}")
    message = message.replace(" (init: --text-column)", "").replace(
        "data.drop_test_leaks=true", "--drop-test-leaks"
    )
    return re.sub(
        rf"(?<![\w/.-])(?:--)?data\.({'|'.join(OPTIONS)})\b(=?)",
        lambda found: f"--{OPTIONS[found[1]]}{' ' if found[2] else ''}",
        message,
    )


def _refuse_to_overwrite(*paths: Path) -> None:
    for path in paths:
        if len(os.fsencode(path.name)) > 255:
            raise UserError(f"--out: {path.name[:40]}... is too long a name for a file; give a shorter one")
        if path.exists():
            raise UserError(f"--out: {path} is there already; give another name, or move it away")
