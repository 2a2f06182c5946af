"""The definitions of the cluster's network policies, as this package carries them. Pure."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import yaml

from podwire.objects.meta import JsonObject

DEFINITIONS: Final = (
    "adminnetworkpolicies",
    "baselineadminnetworkpolicies",
    "clusternetworkpolicies",
)
"""Kinds of policy.networking.k8s.io that are there without anybody applying their definition."""


def definition(plural: str) -> JsonObject:
    """The CustomResourceDefinition of one of `DEFINITIONS`."""
    text = (files("podwire.apiserver") / "data" / f"crd-{plural}.yaml").read_bytes()
    document: JsonObject = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return document
