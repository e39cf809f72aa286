"""The runner of grids: what is passed over, kept, gone on with, and said."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from lab.grid import grid_options, make_rows, read_rows, run_grid, write_rows
from ssl_weighting.errors import NonFiniteError, UserError

ROOT = Path(__file__).resolve().parents[2]


def note(folder, name):
    """Leave a trace of every start."""
    with open(folder / name, "a") as file:
        file.write("started\n")


def square(folder, number):
    note(folder, number)
    return [{"part": part, "square": str(int(number) ** 2)} for part in ("a", "b")]


def explode(folder, number):
    note(folder, number)
    if number == "1":
        raise NonFiniteError("step 3: the loss of 'supervised' is not finite")
    return square(folder, number)


def refuse(folder, number):
    raise UserError("--data.num_labeled -1: must be positive")


def die(folder, number):
    os.kill(os.getpid(), signal.SIGKILL)


def threads(folder, number):
    import torch

    return [{"threads": str(torch.get_num_threads())}]


def jobs(work, folder, count=3):
    return {("square", str(n)): partial(work, folder, str(n)) for n in range(count)}


def make(work, folder, out, count=3, processes=1):
    given = ["--jobs", str(processes), *(["--out", str(out)] if out else [])]
    return make_rows(jobs(work, folder, count), ("what", "number"), grid_options("").parse_args(given))


def starts(folder):
    return {path.name: path.read_text().count("started") for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "starts").mkdir()
    return tmp_path / "starts"


def test_rows_are_kept_in_order_and_finished_keys_are_passed_over(tmp_path, folder, capsys):
    out = tmp_path / "new" / "rows.csv"
    rows = make(square, folder, out, count=2)
    assert rows == read_rows(out)
    assert list(rows[0]) == ["what", "number", "part", "square"]
    assert [(r["number"], r["part"], r["square"]) for r in rows] == [
        ("0", "a", "0"), ("0", "b", "0"), ("1", "a", "1"), ("1", "b", "1"),
    ]  # fmt: skip
    write_rows([{"what": "other", "number": "0", "part": "a", "square": "7"}, *rows[2:]], out)
    capsys.readouterr()

    again = make(square, folder, out, count=3, processes=2)
    assert starts(folder) == {"0": 2, "1": 1, "2": 1}
    assert [r["number"] for r in again] == ["0", "0", "1", "1", "2", "2"]
    assert [r["what"] for r in read_rows(out)] == ["other", *["square"] * 6]  # another grid's row stays
    said = capsys.readouterr().out
    assert "1 of 3 runs are there" in said
    assert "3/3  square  " in said
    assert "0 s left" in said


def test_without_a_file_rows_are_only_given_back(folder):
    assert [row["square"] for row in make(square, folder, None, count=2)] == ["0", "0", "1", "1"]


def test_json_keeps_numbers(tmp_path):
    rows = [{"solver": "exact", "seconds": 0.5, "finite": True}]
    write_rows(rows, tmp_path / "rows.json")
    assert read_rows(tmp_path / "rows.json") == rows


def test_a_failing_job_is_said_and_counted_and_tried_again(tmp_path, folder, capsys):
    out = tmp_path / "rows.csv"
    with pytest.raises(SystemExit) as caught:
        make(explode, folder, out)
    assert caught.value.code == 1
    said = capsys.readouterr().out
    assert "failed  square  1  step 3: the loss of 'supervised' is not finite" in said
    assert "1 of 3 failed" in said
    assert {row["number"] for row in read_rows(out)} == {"0", "2"}
    make(square, folder, out)
    assert {name: count - (name != "1") for name, count in starts(folder).items()} == {"0": 1, "1": 2, "2": 1}
    assert run_grid(jobs(explode, folder), {}, lambda key, made: "", 1) == 1


@pytest.mark.parametrize(
    ("work", "said"), [(refuse, "num_labeled -1"), (die, "--jobs 1: a run was killed from outside")]
)
def test_a_refused_setting_or_a_killed_worker_ends_all_in_a_line(tmp_path, folder, capsys, work, said):
    with pytest.raises(SystemExit) as caught:
        make(work, folder, tmp_path / "rows.csv")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_every_job_has_one_thread(folder, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [row["threads"] for row in make(threads, folder, None, count=1)] == ["1"]


@pytest.mark.parametrize(
    "half", ["square,1,a,1\r\nsquare,1,b", "square,1,a,1\r\nsquare,1\r\n", "square,1,b,1"]
)
def test_half_a_row_is_neither_lost_in_silence_nor_read(tmp_path, folder, capsys, half):
    out = tmp_path / "rows.csv"
    make(square, folder, out, count=1)
    with open(out, "a", newline="") as file:
        file.write(half)
    before = out.read_bytes()
    with pytest.raises(SystemExit) as caught:
        make(square, folder, out)
    assert caught.value.code == 2
    assert f"{half.splitlines()[-1]} is not a whole row" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert starts(folder) == {"0": 1}


SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
from lab.grid import grid_options, make_rows

def work(folder, number):
    with open(folder / number, "a") as file:
        file.write("started\\n")
    while number == "2" and (folder.parent / "wait").exists():
        time.sleep(0.02)
    with open(folder / number, "a") as file:
        file.write("ended\\n")
    return [{"square": str(int(number) ** 2)}]

if __name__ == "__main__":
    options = grid_options("").parse_args()
    folder = options.out.parent / "starts"
    jobs = {(str(n),): partial(work, folder, str(n)) for n in range(4)}
    make_rows(jobs, ("number",), options)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_grid_goes_on_with_the_missing_jobs(tmp_path, folder, sent):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "wait").touch()
    out = tmp_path / "rows.csv"
    command = [sys.executable, str(tmp_path / "script.py"), "--out", str(out), "--jobs", "1"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(read_rows(out)) < 2 or starts(folder).get("2") != 1:
        assert process.poll() is None
        time.sleep(0.02)
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)  # as a terminal does
        assert "interrupted; the same command goes on" in process.communicate()[1]
        assert process.returncode == 130
    else:
        process.send_signal(sent)
        process.communicate()
    assert [row["number"] for row in read_rows(out)] == ["0", "1"]
    time.sleep(1)
    (tmp_path / "wait").unlink()
    time.sleep(0.5)
    assert (folder / "2").read_text() == "started\n"  # its worker ended with the command

    subprocess.run(command, env=env, check=True)
    assert [(row["number"], row["square"]) for row in read_rows(out)] == [
        ("0", "0"), ("1", "1"), ("2", "4"), ("3", "9"),
    ]  # fmt: skip
    assert starts(folder) == {"0": 1, "1": 1, "2": 2, "3": 1}
