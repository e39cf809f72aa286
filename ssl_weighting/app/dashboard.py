"""``ssl-weighting dashboard``: the layout of a team's W&B project, made by code."""

from __future__ import annotations

import argparse
import netrc
import os
from typing import Any

from ssl_weighting.errors import UserError
from ssl_weighting.files import home_path

NAME = "ssl-weighting"
STEP = "trainer/global_step"


def has_wandb_key() -> bool:
    """Whether W&B would find a key: in the environment or in ``~/.netrc``."""
    path = home_path(os.environ.get("NETRC", "~/.netrc"))
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc(path).hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def main(argv: list[str]) -> int:
    """Make or renew the layout and print its address.

    Args:
        argv: ``--entity E --project P``.

    Returns:
        The exit status, 0.

    Raises:
        UserError: Without a key, without the library, or if W&B refuses.
    """
    parser = argparse.ArgumentParser(prog="ssl-weighting dashboard", description=__doc__, allow_abbrev=False)
    parser.add_argument("--entity", required=True, help="your team or user name at W&B")
    parser.add_argument("--project", default="ssl-weighting", help="its project (ssl-weighting)")
    options = parser.parse_args(argv)
    workspace = layout(options.entity, options.project)
    if not has_wandb_key():
        raise UserError(
            "dashboard: needs a key of W&B, neither WANDB_API_KEY nor ~/.netrc has one; run `wandb login` first"
        )
    try:
        workspace.save()
    except Exception as error:  # requests', wandb's and its GraphQL client's have no common class
        raise UserError(
            f"dashboard: W&B did not take it ({type(error).__name__}: {error}); look at --entity={options.entity}, "
            f"--project={options.project} and the key"
        ) from error
    print(workspace.url)
    return 0


def layout(entity: str, project: str) -> Any:
    """The layout as a ``wandb_workspaces`` workspace, not yet sent: runs grouped by recipe, seeds averaged.

    Args:
        entity: Team or user.
        project: Project.

    Raises:
        UserError: Without the library.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError(
            "dashboard: wandb-workspaces is not installed; pip install 'ssl-weighting[dashboard]'"
        ) from None

    def lines(title: str, *metrics: str, log: bool = False) -> Any:
        return wr.LinePlot(title=title, x=STEP, y=list(metrics), log_y=log)

    def section(name: str, *panels: Any) -> Any:
        return ws.Section(name=name, panels=list(panels), is_open=True)

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            section(
                "Error",
                lines("test error", "test/error"),
                lines("validation error", "validation/error"),
                lines("losses evaluated", "validation/loss", "test/loss", log=True),
                lines("training loss", "train/loss", log=True),
            ),
            section(
                "Weights",
                lines("mean weight", "weights/mean"),
                lines("spread of the weights", "weights/q05", "weights/q50", "weights/q95"),
                wr.MediaBrowser(title="weights over training", media_keys=["weights/histogram"]),
            ),
            section(
                "Influence",
                lines("share of harmful examples", "influence/harmful"),
                lines("mean influence", "influence/mean"),
                lines("spread of the influence", "influence/std"),
                lines("loss that Λ steps are to lower", "influence/validation_loss"),
            ),
            section(
                "Examples",
                wr.WeavePanelSummaryTable(table_name="examples/harmful"),
                wr.WeavePanelSummaryTable(table_name="examples/helpful"),
            ),
        ],
        runset_settings=ws.RunsetSettings(groupby=[ws.Config("recipe")]),
        settings=ws.WorkspaceSettings(x_axis=STEP, group_by_prefix="first"),
    )
