"""Threads: as many as there are cores free to use, and asleep while they wait."""

import os
import subprocess
import sys

import pytest

from ssl_weighting.app.cli import main
from ssl_weighting.app.threads import free_cores

COUNT = (
    "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    "from ssl_weighting.app.threads import use_free_cores, wait_asleep\n"
    "wait_asleep(); assert 'torch' not in sys.modules; print(use_free_cores(), os.environ['OMP_WAIT_POLICY'])"
)


def run(program: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_one_core_one_thread_that_sleeps_while_it_waits():
    assert run(COUNT) == "1 PASSIVE"


def test_what_the_environment_says_is_kept():
    program = "from ssl_weighting.app.threads import *; wait_asleep(); import os; print(os.environ['OMP_WAIT_POLICY'])"
    assert run(program, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


def test_a_quota_of_the_control_group_counts(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert free_cores() == 1


def test_the_command_sets_it_before_torch_is_there(capsys):
    program = (
        "import sys, os; from ssl_weighting.app.cli import main; assert 'torch' not in sys.modules\n"
        "main(['--version']); print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    assert run(program).splitlines()[-1] == "PASSIVE False"


def test_the_reason_is_the_one_that_holds():
    program = "from ssl_weighting.app.threads import *; use_free_cores(); print(said_threads())"
    assert run(program, OMP_NUM_THREADS="1") == "computing with 1 thread, by OMP_NUM_THREADS=1"
    assert run(program).endswith(", by the cores that are free to use")


def test_nothing_is_said_of_threads_before_a_mistake(capsys):
    assert main(["fit", "--config", "digits_uda", "--whatever", "1"]) == 2
    assert capsys.readouterr().out == ""
