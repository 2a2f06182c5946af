"""Embedded Kubernetes API server: schemas, validation, store, watch, patch, discovery, tables."""
