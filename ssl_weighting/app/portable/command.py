"""``ssl-weighting export``: a trained model in a folder that is complete by itself."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from ssl_weighting.app.evaluate import opened, read_command, say_changes
from ssl_weighting.app.names import suggestion
from ssl_weighting.app.portable.formats import FILES, need_onnx
from ssl_weighting.app.portable.writing import write_folder
from ssl_weighting.app.trained import restored
from ssl_weighting.errors import UserError
from ssl_weighting.files import home_path

HELP = """\
usage: ssl-weighting export RUN --out FOLDER [--format safetensors|onnx|torch]

The trained model of a run in a folder that needs neither the run nor its data: weights, a frozen encoder where there is
one, preprocessing, class names, and a README.md that says how to use it. Formats: safetensors (default), which
ssl_weighting.load(FOLDER) reads; onnx, which needs nothing of this program; torch, a program of torch.export."""


def main(argv: list[str]) -> int:
    """Write a run's model into a folder, and compare what it predicts from there.

    Args:
        argv: ``RUN --out FOLDER [--format NAME]`` and options of the run.

    Returns:
        0.

    Raises:
        UserError: On bad input, or if the model cannot be kept in that format.
    """
    asked = read_command("export", HELP, argv, ("out", "format"))
    if asked is None:
        return 0
    file_format = asked.own.get("format", "safetensors")
    if file_format not in FILES:
        raise UserError(f"--format {file_format}: no such format; {suggestion(file_format, FILES)}")
    if "out" not in asked.own:
        raise UserError(f"--out: missing; type ssl-weighting export {asked.run} --out FOLDER, a new one")
    out = _new(home_path(asked.own["out"]), asked.own["out"])
    if file_format == "onnx":
        need_onnx("onnx", "onnxscript", "onnxruntime")
    saved = opened(asked)
    model, changes = restored(saved, asked.overrides, device="cpu")
    say_changes(changes)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        difference = write_folder(partial, out.name, saved, model, file_format)
        files = [path for path in partial.rglob("*") if path.is_file()]
        readable = (partial / "README.md").stat().st_mode
        for path in files:  # safetensors makes files that only their owner reads
            path.chmod(readable)
        size = sum(path.stat().st_size for path in files)
        partial.rename(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(
        f"{out}: {file_format}, {size / 1e6:.1f} MB; probabilities differ from the run's by {difference:.0e} at most"
    )
    if saved.belonging is not None:
        print(f"own_probability stays with the run: ssl-weighting predict {shlex.quote(asked.run)} gives it")
    return 0


def _new(out: Path, typed: str) -> Path:
    """A folder that is not there yet, in one that is.

    Raises:
        UserError: Otherwise.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {typed}: is there already and stays as it is; give another name")
    if not out.parent.is_dir():
        raise UserError(f"--out {typed}: {out.parent} is no folder; make it, or give another name")
    return out
