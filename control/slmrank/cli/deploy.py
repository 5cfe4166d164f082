"""`control deploy`: manifests from a bundle, checks of any manifest, and the way into a cluster."""

from __future__ import annotations

from typing import Any

import click

from slmrank.cli import deploy_canary as canary
from slmrank.cli import deploy_cluster as cluster
from slmrank.cli import deploy_manifests as manifests
from slmrank.cli import deploy_push as push
from slmrank.errors import ControlError, DeployFailed, Refused, RolledBack


class _Deploy(click.Group):
    """Exit codes of these verbs: 0 done, 1 refused and nothing changed, 2 rolled back, 3 failed. So
    whatever stops one before it changes something is a refusal, also a wrong flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise Refused(error.format_message(), "see control deploy --help") from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            verb = error.ctx.command_path if error.ctx else "control deploy"
            raise Refused(error.format_message(), f"see {verb} --help") from error
        except (Refused, RolledBack, DeployFailed):
            raise
        except ControlError as error:
            raise Refused(error.message, error.hint) from error


_COMMANDS = (
    *(manifests.render_command, manifests.check_command, push.push_command),
    *(cluster.plan_command, cluster.apply_command, cluster.status_command),
    *(cluster.rollback_command, canary.promote_command, canary.abort_command),
    cluster.delete_command,
)


@click.group("deploy", cls=_Deploy, commands=_COMMANDS)
def deploy_command() -> None:
    """Bring a bundle into Kubernetes.

    render writes the manifests of a spec or a release, check reads any manifests for defects; push,
    plan, apply, status, rollback, promote, abort and delete work on a cluster.

    Exit codes: 0 done, 1 refused and nothing changed, 2 failed and the release before it serves, 3
    failed and nothing was put back.

    \b
    Example:
      control deploy render build/demo.yaml
      control deploy check k8s/base
      control deploy plan build/demo.yaml
    """
