"""The command line: argument parsing and printing, nothing else.

Commands are imported when they are called, so `podwire --help` and shell completion stay fast.
Errors of podwire are printed in one line and end with the exit code of their class; `-o json`
everywhere gives machines what people see as a table.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from podwire import __version__
from podwire.errors import PodwireError

_COMMANDS = {
    "apply": "podwire.cli.objects:apply",
    "check": "podwire.cli.check:check",
    "delete": "podwire.cli.objects:delete",
    "demo": "podwire.cli.demo:demo",
    "dns": "podwire.cli.dns:dns",
    "down": "podwire.cli.lab:down",
    "events": "podwire.cli.objects:events",
    "exec": "podwire.cli.objects:exec_",
    "image": "podwire.cli.image:image",
    "kubectl": "podwire.cli.objects:kubectl",
    "link": "podwire.cli.lab:link",
    "logs": "podwire.cli.objects:logs",
    "node": "podwire.cli.lab:node",
    "plan": "podwire.cli.plan:plan",
    "policy": "podwire.cli.policy:policy",
    "publish": "podwire.cli.lab:publish",
    "reach": "podwire.cli.reach:reach",
    "shell": "podwire.cli.objects:shell",
    "status": "podwire.cli.lab:status",
    "up": "podwire.cli.lab:up",
    "wait": "podwire.cli.wait:wait",
    "why": "podwire.cli.why:why",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.command(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="podwire")
def cli() -> None:
    """Kubernetes networking, whole, on this machine.

    `podwire up -f manifests/` builds a real network in about a second; real kubectl talks to it.
    """


def main() -> NoReturn:
    try:
        code = cli(prog_name="podwire", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PodwireError as error:
        click.echo(f"error: {error}", err=True)
        for note in getattr(error, "__notes__", ()):
            click.echo(f"note: {note}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)
