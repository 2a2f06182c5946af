"""`podwire image`: real images for containers that are to run for real."""

from __future__ import annotations

import click

from podwire.cli.output import lab_option, output_option, print_structured, print_table
from podwire.lab import Lab, launch


@click.group()
def image() -> None:
    """Load and list container images of a lab."""


@image.command("load")
@click.argument("archive", type=click.Path(exists=True))
@lab_option
def load(archive: str, lab: str | None) -> None:
    """Load a `docker save` archive or an OCI layout (file or folder)."""
    name = launch.choose(lab)
    launch.require_running(name)
    for reference in Lab(name).load_image(archive):
        click.echo(f"loaded {reference}")


@image.command("list")
@lab_option
@output_option
def list_(lab: str | None, output: str) -> None:
    """List loaded images."""
    name = launch.choose(lab)
    launch.require_running(name)
    found = Lab(name).images()
    if not print_structured(found, output):
        print_table("Images", ["Image", "Id"], [[i.reference, i.id[:19]] for i in found])
