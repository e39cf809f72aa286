"""The layout of a W&B project, made offline; without a key an honest error."""

import pytest

from ssl_weighting.app.cli import main
from ssl_weighting.app.dashboard import has_wandb_key, layout

workspaces = pytest.importorskip("wandb_workspaces.workspaces")


def test_the_layout_shows_what_runs_log(tiny_run):
    workspace = layout("team", "project")
    shown = {
        metric
        for section in workspace.sections
        for panel in section.panels
        for metric in getattr(panel, "y", [])
    }
    header = (tiny_run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {str(getattr(metric, "name", metric)) for metric in shown} <= set(header)
    assert {section.name for section in workspace.sections} == {"Error", "Weights", "Influence", "Examples"}
    assert "recipe" in str(workspace.runset_settings.groupby)
    workspace._to_model()  # W&B's own form; what save() sends


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_without_a_key(no_key, capsys):
    assert main(["dashboard", "--entity", "team", "--project", "p"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: dashboard: needs a key of W&B")
    assert "wandb login" in said


def test_where_a_key_is_looked_for(no_key, monkeypatch):
    assert not has_wandb_key()
    no_key.write_text("machine api.wandb.ai login user password 0123\n")
    no_key.chmod(0o600)
    assert has_wandb_key()
    no_key.write_text("machine example.org login user password wandb\n")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert has_wandb_key()
