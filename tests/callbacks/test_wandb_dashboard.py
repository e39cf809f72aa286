"""W&B: the offline run's own record, read back."""

import json
import struct

import pytest
import torch
import yaml
from command import words
from jsonargparse import Namespace

from ssl_weighting.app.callbacks.wandb_dashboard import name_wandb_run
from ssl_weighting.app.cli import main
from ssl_weighting.app.runs import Run

KEY = "0123456789abcdef0123456789abcdef01234567"


def records(path):
    """Records of a ``.wandb`` file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, position, part = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        part += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""


def key_of(item):
    return "/".join(item.nested_key) or item.key


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of 24 steps, eight evaluations, with W&B, offline, resumed after 12."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB_SILENT", "true")
        folder = tmp_path_factory.mktemp("wandb")
        patch.setenv("WANDB_DATA_DIR", str(folder / "staging"))
        options = {
            "config": "digits_uda",
            "runs": folder,
            "trainer.logger": "WandbLogger",
            "trainer.val_check_interval": 2,
            "trainer.accelerator": "cpu",
            "trainer.log_every_n_steps": 2,
            "model.weighting.inner_steps": 1,
            "model.weighting.warmup_steps": 1,
            "model.weighting.update_masked": "true",
            "model.theta.schedule": "constant",
            "data.unlabeled_batch_size": 16,
            "data.num_labeled": 20,
            "data.labeled_batch_size": 20,
            "data.num_validation": 150,
            "data.validation_batch_size": 150,
            "data.evaluate_test": "false",
        }
        assert main(["fit", *words(options), "--trainer.max_steps", "12"]) == 0
        assert main(["resume", str(folder / "digits_uda"), "--trainer.max_steps", "16"]) == 0
    (run,) = (folder / "digits_uda").iterdir()
    return run


@pytest.fixture(scope="module")
def first_record(run_folder):
    paths = sorted(run_folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(paths) == 2
    assert paths[0].name == paths[1].name, "a resumed run goes on under the same identity"
    return list(records(paths[0]))


def history(record, name):
    """Step → value of everything logged under a name."""
    found = {}
    for entry in record:
        if entry.WhichOneof("record_type") == "history":
            items = {key_of(item): json.loads(item.value_json) for item in entry.history.item}
            if values := {k: v for k, v in items.items() if k == name or k.startswith(f"{name}/")}:
                found[items["trainer/global_step"]] = values.get(name, values)
    return found


def test_who_it_is(run_folder, first_record):
    (run,) = (entry.run for entry in first_record if entry.WhichOneof("record_type") == "run")
    assert run.project == "ssl-weighting"
    assert run.run_group == "digits_uda"
    assert run.job_type == "fit"
    assert set(run.tags) == {"digits_uda", "seed0"}
    assert run.run_id == run.display_name == run_folder.name
    config = {
        key_of(item): json.loads(item.value_json)
        for entry in first_record
        if entry.WhichOneof("record_type") == "config"
        for item in entry.config.update
    }
    assert config["recipe"] == "digits_uda"
    assert config["seed"] == 0
    assert config["model"]["algorithm"]["class_path"].endswith("UDA")


def test_curves_and_statistics(run_folder, first_record):
    metrics = Run(run_folder).metrics
    for name in (
        "validation/error",
        "validation/loss",
        "influence/mean",
        "influence/harmful",
        "weights/mean",
    ):
        logged = history(first_record, name)
        steps, values = metrics[name]
        before = {int(s): v for s, v in zip(steps, values, strict=True) if s <= 12}
        assert logged == pytest.approx(before, rel=1e-6), name
    assert list(history(first_record, "test/error")) == [12]


def test_histograms_are_those_of_the_csv(run_folder, first_record):
    logged = history(first_record, "weights/histogram")
    kept = Run(run_folder).weight_history
    assert sorted(logged) == [0, 2, 4, 6, 8, 10, 12]
    assert kept.steps.tolist() == [*sorted(logged), 14, 16], "and the resumed part goes on"
    for i, step in enumerate(sorted(logged)):
        values = logged[step]
        assert values["weights/histogram/values"] == kept.counts[i].tolist()
        bins = values["weights/histogram/bins"]
        assert [bins[0], bins[-1]] == pytest.approx([kept.low[i], kept.high[i]])


def test_tables_of_extremes(run_folder, first_record):
    for kind in ("harmful", "helpful"):
        tables = history(first_record, f"examples/{kind}")
        assert sorted(tables) == [10, 12], "the fifth evaluation, and the end"
        assert tables[12][f"examples/{kind}/nrows"] == 16
        assert tables[12][f"examples/{kind}/ncols"] == 7
    pictures = {
        entry.path
        for record in first_record
        if record.WhichOneof("record_type") == "artifact"
        for entry in record.artifact.manifest.contents
        if entry.path.endswith(".png")
    }
    assert len(pictures) >= 32
    path = tables[12]["examples/helpful/path"]
    (file,) = run_folder.glob(f"wandb/offline-run-*/files/{path}")
    rows = json.loads(file.read_text())["data"]
    weights = [row[1] for row in rows]
    assert weights == sorted(weights, reverse=True)


def test_no_key_is_copied(run_folder):
    files = [path for path in run_folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_the_saved_configuration_starts_a_run_of_its_own(run_folder):
    logger = yaml.safe_load((run_folder / "config.yaml").read_text())["trainer"]["logger"]["init_args"]
    assert logger["id"] is None
    assert logger["save_dir"] in (None, ".")


def test_secrets_in_the_configuration_are_not_saved(tmp_path, monkeypatch):
    (tmp_path / "with_a_secret.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Notify(Callback):\n"
        "    def __init__(self, api_token: str) -> None:\n"
        "        assert api_token == 'very-secret'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    callback = '{"class_path": "with_a_secret.Notify", "init_args": {"api_token": "very-secret"}}'
    arguments = [
        "fit",
        "--config",
        "digits_uda",
        "--runs",
        str(tmp_path / "runs"),
        "--trainer.max_steps",
        "1",
    ]
    assert main([*arguments, "--trainer.accelerator", "cpu", "--trainer.callbacks", f"[{callback}]"]) == 0
    (run,) = (tmp_path / "runs" / "digits_uda").iterdir()
    assert "with_a_secret.Notify" in (run / "config.yaml").read_text()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
    assert not [path for path in run.rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()]


def test_tags_are_as_long_as_wandb_takes(tmp_path):
    from wandb import Settings

    logger = Namespace(init_args=Namespace(tags=None, name=None))
    name_wandb_run(logger, tmp_path / "run", "flowers_" * 10, 0)
    assert logger.init_args.name == "run"
    assert Settings(run_tags=logger.init_args.tags).run_tags[1] == "seed0"
