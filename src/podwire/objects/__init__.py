"""Typed views of Kubernetes objects: only the fields networking and its lab read; no I/O."""
