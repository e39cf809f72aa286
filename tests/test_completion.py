"""Shells complete commands, recipes, options and classes."""

import shutil
import subprocess

import pytest

from ssl_weighting.app.cli import COMMANDS, main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["completion", "bash"]) == 0
    path = tmp_path_factory.mktemp("completion") / "ssl-weighting.bash"
    path.write_text(said.getvalue())
    return path


def completed(script, *words):
    """What bash offers for the last of the words."""
    if not shutil.which("bash"):
        pytest.skip("no bash")
    line = " ".join(words)
    program = (
        f"source {script}; COMP_WORDS=({line} {'' if words[-1] else chr(34) * 2}); "
        f"COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; "
        f'_shtab_ssl_weighting; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    return subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, timeout=30, check=False
    ).stdout.split()


def test_commands(script):
    assert {"fit", "predict", *COMMANDS} <= set(completed(script, "ssl-weighting", ""))
    assert completed(script, "ssl-weighting", "wei") == ["weights"]


def test_options_of_the_loop_and_of_plug_ins(script):
    assert completed(script, "ssl-weighting", "fit", "--model.weighting.inner") == [
        "--model.weighting.inner_steps"
    ]
    assert "--model.algorithm.threshold" in completed(script, "ssl-weighting", "fit", "--model.algorithm.")
    assert completed(script, "ssl-weighting", "fit", "--data.num_lab") == ["--data.num_labeled"]


def test_values(script):
    assert "digits_uda" in completed(script, "ssl-weighting", "fit", "--config", "digits")
    assert completed(script, "ssl-weighting", "fit", "--model.weighting.kind", "per") == ["per_example"]
    assert "FixMatch" in completed(script, "ssl-weighting", "fit", "--model.algorithm", "Fix")


def test_an_unknown_shell(capsys):
    with pytest.raises(SystemExit):
        main(["completion", "cmd"])
    assert "invalid choice" in capsys.readouterr().err
