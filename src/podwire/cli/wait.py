"""`podwire wait`: return when something is so."""

from __future__ import annotations

import click

from podwire.cli.policies import wait_policies_command
from podwire.cli.services import wait_services_command


@click.group()
def wait() -> None:
    """Wait until something is so."""


wait.add_command(wait_services_command)
wait.add_command(wait_policies_command)
