"""Whole labs; the fixtures are those of `labtools`, shared with the conformance cases."""

from labtools import Tools, busybox_image, root, run_dir, shared, tools

__all__ = ["Tools", "busybox_image", "root", "run_dir", "shared", "tools"]
