"""The lab a command is about. Imported where a lab is needed: what computes from manifests works
where labs do not."""

from __future__ import annotations

from podwire.lab import Lab, launch


def running_lab(lab: str | None) -> Lab:
    """The one that is named, else `$PODWIRE_LAB` or the only one; `LabError` unless it runs."""
    name = launch.choose(lab)
    launch.require_running(name)
    return Lab(name)
