"""Faults of the machine, each really injected: one clear line, and files that were there stay whole."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from multiprocessing import resource_sharer
from pathlib import Path

import pytest
import torch
from command import words
from lightning.pytorch import Callback

from ssl_weighting.app.callbacks import RunFiles
from ssl_weighting.app.cli import main
from ssl_weighting.app.launch import explained, locked, release
from ssl_weighting.errors import LocalError, NonFiniteError, UserError
from ssl_weighting.files import whole_file
from ssl_weighting.views import Views
from ssl_weighting.weighting.row_file import RowFile
from ssl_weighting.weighting.weighting import row_defaults

OPTIONS = {
    "trainer.max_steps": 40,
    "trainer.val_check_interval": 10,
    "trainer.accelerator": "cpu",
    "trainer.log_every_n_steps": 4,
    "model.weighting.inner_steps": 3,
    "model.weighting.warmup_steps": 5,
    "model.weighting.update_masked": "true",
    "model.backbone.channels": "[8,8]",
    "checkpoint.every_steps": 7,
    "data.unlabeled_batch_size": 16,
}


def arguments(runs, *more):
    return ["fit", "--config", "digits_uda", "--runs", str(runs), *words(OPTIONS), *more]


def start(runs, *more, **options):
    command = [sys.executable, "-m", "ssl_weighting", *arguments(runs, *more)]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def wait_for(runs, step, process):
    """Until a row of this step is in metrics.csv."""
    while not any(f"\n{step}," in path.read_text() for path in Path(runs).glob("*/*/metrics.csv")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def one_line(said):
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]


def run_of(runs):
    (run,) = Path(runs).glob("*/*")
    return run


def state(run, name="last"):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same(first, second):
    for name, value in first["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(), second["state_dict"][name].nan_to_num()), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(folder)) == 0
    return run_of(folder)


class At(Callback):
    """Does something at the end of a θ step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.what(pl_module)


@contextmanager
def at(monkeypatch, step, what):
    """The commands of this process meet ``what`` before θ step ``step``."""
    from ssl_weighting.app import run

    with monkeypatch.context() as patch:
        patch.setattr(run, "progress_callback", lambda: At(step, what))
        yield


@pytest.mark.parametrize("step", [14, 20], ids=["between evaluations", "where an evaluation follows"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_the_same(number, step, whole, tmp_path, monkeypatch, capsys):
    with at(monkeypatch, step - 1, lambda _: os.kill(os.getpid(), number)), pytest.raises(SystemExit) as stop:
        main(arguments(tmp_path))
    assert stop.value.code == 128 + number
    assert f"step {step} is saved" in capsys.readouterr().err
    run = run_of(tmp_path)
    assert state(run)["global_step"] == step
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert main([*arguments(tmp_path), "--ckpt_path", "last"]) == 0
    same(state(whole), state(run))
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


@pytest.mark.slow
def test_sigterm_of_a_real_process(tmp_path):
    process = start(tmp_path, "--trainer.max_steps", "4000")
    wait_for(tmp_path, 12, process)
    process.terminate()
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 143, said
    assert "SIGTERM: step" in said
    assert "Traceback" not in said


def test_a_truncated_checkpoint_is_refused_and_the_one_before_it_taken(whole, tmp_path, capsys):
    assert main([*arguments(tmp_path), "--trainer.max_steps", "30"]) == 0
    run = run_of(tmp_path)
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert main([*arguments(tmp_path), "--ckpt_path", "last"]) == 2
    said = one_line(capsys.readouterr().err)
    assert "last.ckpt is not a whole checkpoint" in said
    assert "previous.ckpt is the one before it" in said
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    options = ["--ckpt_path", "previous", "--model.theta.schedule", "constant"]
    assert main([*arguments(tmp_path), *options]) == 0
    assert state(run)["global_step"] == 40


def test_foreign_files_are_refused_by_name(whole, tmp_path, capsys):
    (tmp_path / "split.json").write_bytes((whole / "split.json").read_bytes()[:-40])
    (tmp_path / "other.ckpt").write_bytes((whole / "weights.parquet").read_bytes())
    for option, name in (("--data.split", "split.json"), ("--ckpt_path", "other.ckpt")):
        assert main([*arguments(tmp_path / "runs"), option, str(tmp_path / name)]) == 2
        assert name in one_line(capsys.readouterr().err)
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own that holds 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk(small_disk, whole, capsys, monkeypatch):
    def fill(_):
        with suppress(OSError), open(small_disk / "filler", "wb") as file:
            while True:
                file.write(b"x" * 4096)

    with at(monkeypatch, 25, fill):
        assert main(arguments(small_disk)) == 2
    said = one_line(capsys.readouterr().err)
    run = run_of(small_disk)
    assert "No space left on device" in said
    assert said.endswith(f"ssl-weighting resume {run} goes on")
    assert state(run)["global_step"] == 21
    assert not list(run.rglob("*.partial"))
    (small_disk / "filler").unlink()
    assert main([*arguments(small_disk), "--ckpt_path", "last"]) == 0
    same(state(whole), state(run))


def test_a_limit_on_the_size_of_files(tmp_path, capsys, monkeypatch):
    """As a quota: a write beyond it fails, and the signal that comes with it is ignored as Python does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with at(monkeypatch, 15, lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))):
            assert main(arguments(tmp_path)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "last.ckpt: cannot be written (File too large)" in one_line(capsys.readouterr().err)
    assert state(run_of(tmp_path))["global_step"] == 14


def test_a_folder_that_becomes_read_only(small_disk, capsys, monkeypatch):
    def remount(_):
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    with at(monkeypatch, 15, remount):
        assert main(arguments(small_disk)) == 2
    assert "Read-only file system" in one_line(capsys.readouterr().err)
    assert state(run_of(small_disk))["global_step"] == 14
    assert main(arguments(small_disk)) == 2
    assert "Read-only file system" in one_line(capsys.readouterr().err)


def test_a_killed_data_worker(tmp_path, capsys, monkeypatch):
    def kill_a_worker(_):
        import multiprocessing

        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with at(monkeypatch, 15, kill_a_worker):
        assert main([*arguments(tmp_path), "--data.num_workers", "1"]) == 2
    said = one_line(capsys.readouterr().err)
    assert re.search(
        r"data\.num_workers: DataLoader worker (\(pid\(?s?\)? |was lost ).*ssl-weighting resume RUN", said
    ), said
    assert state(run_of(tmp_path))["global_step"] == 14


def test_a_data_worker_lost_while_it_hands_over_a_batch(tmp_path):
    with pytest.raises(FileNotFoundError) as fault:
        resource_sharer._resource_sharer.get_connection((str(tmp_path / "gone"), 0))
    assert "data.num_workers: DataLoader worker was lost" in str(explained(fault.value))
    with pytest.raises(FileNotFoundError) as fault:
        (tmp_path / "gone").read_text()
    assert explained(fault.value) is None


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_two_that_dies(rank, tmp_path):
    two = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.max_steps", "4000"]
    process = start(tmp_path, *two)
    wait_for(tmp_path, 16, process)
    children = [int(p) for p in _children(process.pid)]
    (other,) = [p for p in children if b"ssl_weighting" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(process.pid if rank == 0 else other, signal.SIGKILL)
    said = process.communicate(timeout=600)[1]
    assert "another process of this run stopped or was killed" in one_line(said)
    assert "Traceback" not in said
    while Path(f"/proc/{other}").exists() and "State:\tZ" not in Path(f"/proc/{other}/status").read_text():
        time.sleep(0.1)  # none is left behind
    assert state(run_of(tmp_path))["global_step"] >= 7


def _children(pid):
    return subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()


def test_two_runs_at_once_in_one_folder(whole, tmp_path, capsys, monkeypatch):
    """The second is refused while the first trains; a lock that a killed process held is none."""
    found = []

    def start_another(_):
        second = start(tmp_path, "--ckpt_path", "last")
        said = second.communicate(timeout=600)[1]
        found.append((second.returncode, one_line(said)))

    with at(monkeypatch, 15, start_another):
        assert main(arguments(tmp_path)) == 0
    assert found[0][0] == 2
    assert "another process trains in this folder" in found[0][1]
    same(state(whole), state(run_of(tmp_path)))
    assert main([*arguments(tmp_path), "--ckpt_path", "last"]) == 0


def test_a_clock_that_is_set_back(tmp_path, monkeypatch):
    """``last`` is the run that saved last, whatever the clock said meanwhile."""
    assert main(arguments(tmp_path)) == 0
    first = run_of(tmp_path)
    a_year = (time.time_ns() + 365 * 86400 * 10**9,) * 2
    os.utime(first / "checkpoints" / "last.ckpt", ns=a_year)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 10**8)
    assert (
        main([*arguments(tmp_path), "--trainer.max_steps", "20", "--model.theta.schedule", "constant"]) == 0
    )
    monkeypatch.undo()
    more = ["--ckpt_path", "last", "--trainer.max_steps", "26", "--model.theta.schedule", "constant"]
    assert main([*arguments(tmp_path), *more]) == 0
    (second,) = (run for run in tmp_path.glob("*/*") if run != first)
    assert (state(first)["global_step"], state(second)["global_step"]) == (40, 26)


def poison(model):
    with torch.no_grad():
        next(model.model.parameters()).fill_(float("nan"))


def test_nan_is_named_and_stops(tmp_path, capsys, monkeypatch):
    with at(monkeypatch, 16, poison):
        assert main(arguments(tmp_path)) == 2
    assert re.search(r"loss term '\w+' is not finite at step 16", one_line(capsys.readouterr().err))
    checkpoint = state(run_of(tmp_path))
    assert checkpoint["global_step"] == 14
    assert all(v.isfinite().all() for k, v in checkpoint["state_dict"].items() if k.startswith("model."))


def test_nan_in_a_batch_is_skipped_if_asked(tmp_path, monkeypatch):
    """One bad batch: that step is skipped and counted, θ and its statistics stay finite."""
    of = Views.of

    def bad(self, batch):
        known, unknown = of(self, batch)
        if "validation" not in batch and self.data.trainer.global_step == 16:
            known.inputs.fill_(float("nan"))
        return known, unknown

    monkeypatch.setattr(Views, "of", bad)
    assert main([*arguments(tmp_path), "--model.nonfinite", "skip"]) == 0
    run = run_of(tmp_path)
    checkpoint = state(run)
    assert checkpoint["global_step"] == 40
    assert checkpoint["ssl_weighting"]["skipped"] == 1
    for name, value in checkpoint["state_dict"].items():
        if name.startswith(("model.", "ema.", "weights.")) and isinstance(value, torch.Tensor):
            assert value.isfinite().all(), name
    assert "train/skipped" in (run / "metrics.csv").read_text()


def test_whole_file_keeps_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(LocalError, match="cannot be written"), whole_file(path):
        raise OSError(28, "No space left on device")
    with suppress(ZeroDivisionError), whole_file(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


def test_nonfinite_is_a_user_error():
    assert issubclass(NonFiniteError, UserError)
    assert RunFiles().directory is None


# ---- weights in a file ------------------------------------------------------------------------------------


def rows(path, size=1000):
    return RowFile(path, size, row_defaults(1.0))


def test_a_crash_at_any_moment_leaves_rows_that_belong_to_a_checkpoint(tmp_path):
    file = rows(tmp_path / "weights.rows")
    index = torch.tensor([3, 700])
    for step in (5, 10):
        file.write(index, torch.full((2, 8), float(step)))
        file.journal(step)
        file.settle(step)
    file.write(index, torch.full((2, 8), 15.0))

    again = rows(tmp_path / "weights.rows")  # killed before a checkpoint
    again.open_at(10)
    assert (again.read(index) == 10).all()
    file.journal(15)
    again = rows(tmp_path / "weights.rows")  # killed after the journal, before last.ckpt
    again.open_at(10)
    assert (again.read(index) == 10).all()
    file.journal(15)
    again = rows(tmp_path / "weights.rows")  # killed after last.ckpt, before the rows were written
    again.open_at(15)
    assert (again.read(index) == 15).all()
    assert again.read(torch.tensor([4]))[0, 0] == 1
    with pytest.raises(UserError, match="of step 15, the checkpoint is of step 10"):
        again.open_at(10)


def test_a_foreign_or_truncated_file_of_rows(tmp_path):
    path = tmp_path / "weights.rows"
    rows(path)
    with pytest.raises(UserError, match=r"weights\.rows: holds 1000 rows"):
        rows(path, 999)
    os.truncate(path, 9000)
    with pytest.raises(UserError, match="damaged"):
        rows(path)
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="not a file of weights"):
        rows(path)


def test_rows_never_written_take_no_room(tmp_path):
    file = rows(tmp_path / "weights.rows", 10**8)
    file.write(torch.tensor([10**8 - 1]), torch.ones(1, 8))
    file.journal(1)
    file.settle(1)
    assert (tmp_path / "weights.rows").stat().st_blocks * 512 < 10**6
    assert (rows(tmp_path / "weights.rows", 10**8).read(torch.tensor([10**8 - 1])) == 1).all()


def test_a_run_with_weights_on_disk_resumes_exactly(whole, tmp_path, capsys, monkeypatch):
    on_disk = ["--model.weighting.storage", "disk"]
    assert main([*arguments(tmp_path / "whole"), *on_disk]) == 0
    with at(monkeypatch, 15, poison):
        assert main([*arguments(tmp_path / "killed"), *on_disk]) == 2
    assert main([*arguments(tmp_path / "killed"), *on_disk, "--ckpt_path", "last"]) == 0
    tables = [
        (run / "weights.parquet").read_bytes()
        for run in (whole, run_of(tmp_path / "whole"), run_of(tmp_path / "killed"))
    ]
    assert tables[0] == tables[1] == tables[2]
    capsys.readouterr()
    assert main([*arguments(tmp_path / "killed"), *on_disk, "--ckpt_path", "previous"]) == 2
    assert "only the last checkpoint can be gone on from" in one_line(capsys.readouterr().err)
    checkpoint = str(run_of(tmp_path / "killed") / "checkpoints" / "last.ckpt")
    assert main(["test", checkpoint]) == 0


def test_a_fork_after_a_run_closes_nothing_of_others(tmp_path):
    descriptor = locked(tmp_path)
    release(descriptor)
    with open(tmp_path / "other", "w") as other:
        assert other.fileno() == descriptor, "the number was not given out again"
        child = os.fork()
        if not child:
            os._exit(0 if Path(f"/proc/self/fd/{descriptor}").exists() else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_fork_does_not_hold_the_lock_of_a_run(tmp_path):
    descriptor = locked(tmp_path)
    there, started = os.pipe()
    child = os.fork()
    if not child:
        os.write(started, b".")
        time.sleep(60)
        os._exit(0)
    os.read(there, 1)
    release(descriptor)
    release(locked(tmp_path))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
