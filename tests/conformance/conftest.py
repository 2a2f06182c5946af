"""Cases of upstream under their own names, in whole labs; the fixtures are those of `labtools`."""

from labtools import Tools, root, run_dir, shared, tools

__all__ = ["Tools", "root", "run_dir", "shared", "tools"]
