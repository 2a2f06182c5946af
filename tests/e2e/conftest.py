"""Whole labs; the fixtures are those of `labtools`, shared with the conformance cases."""

from labtools import Tools, root, run_dir, shared, tools

__all__ = ["Tools", "root", "run_dir", "shared", "tools"]
