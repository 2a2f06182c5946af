"""Removing trees of our own, also where directories came without permissions.

overlayfs leaves a work directory of mode 000, and image layers bring directories nobody may write;
root does not mind, the owner of a rootless lab has to open them first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def remove_tree(path: Path) -> None:
    """Remove `path` and everything below it; an absent one is fine."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if path.exists():
            raise
    except PermissionError:
        _open_directories(path)
        shutil.rmtree(path)


def _open_directories(path: Path) -> None:
    """Top down, so that each directory can be listed once it was opened."""
    os.chmod(path, 0o700)
    for folder, names, _ in os.walk(path):
        for name in names:
            full = os.path.join(folder, name)
            if not os.path.islink(full):
                os.chmod(full, 0o700)
