"""Compile the field numbers of Kubernetes' protobuf messages into the API server's data.

The source is any Go program that links `k8s.io/api` up to 1.33, such as kubectl 1.33: it carries
the descriptor of every `generated.proto`, gzipped, as gogo-protobuf registers them. They are found
by gzip's magic number. Types are not taken from there: the compiled JSON schemas
(`compile_schemas.py`) tell them, and fields those do not know are left out.

    protobuf.json.zlib   {definition without "io.k8s.": {field number: name and mark}}

    "spec"          a field under its JSON name
    "hostNetwork?"  one that Go leaves out of JSON when it is zero or empty
    "extra[]"       a map whose values are messages that only wrap a list of strings
    "^api.core.v1.VolumeSource"   a struct whose fields JSON shows as the outer struct's own

Run `python tools/compile_protobuf.py PROGRAM` with the path of kubectl 1.33.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "src/podwire/apiserver/data"
STRUCTURE, NUMBERS = "structure.json.zlib", "protobuf.json.zlib"

_GZIP = re.compile(rb"\x1f\x8b\x08")
_LARGEST = 1 << 20
_STABLE = re.compile(r"api\.\w+\.v[12]\.\w+|apimachinery\.pkg\.apis\.meta\.v1\.\w+")
"""The versions the server has: later than beta."""

# descriptor.proto: numbers of FileDescriptorProto, DescriptorProto, FieldDescriptorProto.
_FILE_PACKAGE, _FILE_MESSAGE = 2, 4
_MESSAGE_NAME, _MESSAGE_FIELD = 1, 2
_FIELD_NAME, _FIELD_NUMBER, _FIELD_TYPE, _FIELD_REF = 1, 3, 5, 6
_TYPE_MESSAGE, _TYPE_STRING = 11, 9

# Neither descriptors nor OpenAPI tell pointers from values. Of numbers and booleans these are
# values (types.go: `omitempty` without `*`), so that their zero means "not set".
VALUES = frozenset(
    (
        *("active", "availableReplicas", "currentReplicas", "failed", "fullyLabeledReplicas"),
        *("numberAvailable", "numberUnavailable", "readyReplicas", "replicas", "succeeded"),
        *("unavailableReplicas", "updatedNumberScheduled", "updatedReplicas"),
        *("count", "deprecatedCount", "generation", "hostPort", "nodePort", "healthCheckNodePort"),
        *("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold"),
        *("failureThreshold", "minReadySeconds", "number", "observedGeneration", "partition"),
        *("signal", "sizeBytes", "authenticated", "chapAuthDiscovery", "chapAuthSession"),
        *("clusterScope", "denied", "globalDefault", "hostIPC", "hostNetwork", "hostPID", "paused"),
        *("publishNotReadyAddresses", "readOnly", "sslEnabled", "stdin", "stdinOnce", "tty"),
        "unschedulable",
    )
)
POINTERS = frozenset(
    (
        "api.admissionregistration.v1.MutatingWebhook.timeoutSeconds",
        "api.admissionregistration.v1.ValidatingWebhook.timeoutSeconds",
        "api.apps.v1.DeploymentSpec.replicas",
        "api.apps.v1.ReplicaSetSpec.replicas",
        "api.apps.v1.RollingUpdateStatefulSetStrategy.partition",
        "api.apps.v1.StatefulSetSpec.replicas",
        "api.core.v1.ClientIPConfig.timeoutSeconds",
        "api.core.v1.ReplicationControllerSpec.replicas",
        "api.storage.v1.VolumeNodeResources.count",
    )
)
"""Fields with a name of VALUES that are pointers all the same."""
POINTER_STRINGS = frozenset(
    (
        "api.coordination.v1.LeaseSpec.holderIdentity",
        "api.core.v1.GRPCAction.service",
        "api.core.v1.PersistentVolumeClaimSpec.storageClassName",
        "api.core.v1.PersistentVolumeClaimSpec.volumeAttributesClassName",
        "api.core.v1.PodDNSConfigOption.value",
        "api.core.v1.TypedLocalObjectReference.apiGroup",
        "api.core.v1.TypedObjectReference.apiGroup",
        "api.discovery.v1.EndpointPort.name",
    )
)
"""Optional strings that mean something when they are empty."""


@dataclass(frozen=True)
class Field:
    """One field as a descriptor has it; `ref` is its message's name."""

    number: int
    name: str
    type: int
    ref: str


Messages = dict[str, list[Field]]


def read_messages(program: bytes) -> Messages:
    """Every message of Kubernetes' own packages in a program, under definition names."""
    found: Messages = {}
    for match in _GZIP.finditer(program):
        unpacker = zlib.decompressobj(31)
        try:
            text = unpacker.decompress(program[match.start() : match.start() + _LARGEST])
        except zlib.error:
            continue
        if unpacker.eof and b"k8s.io/" in text[:40] and b"generated.proto" in text[:120]:
            file = _grouped(text)
            package = file[_FILE_PACKAGE][0].decode()
            for message in file.get(_FILE_MESSAGE, ()):
                _read_message(package, message, found)
    return found


def _read_message(package: str, raw: bytes, found: Messages) -> None:
    message = _grouped(raw)
    name = f"{package}.{message[_MESSAGE_NAME][0].decode()}"
    found[_definition(name)] = [_read_field(field) for field in message.get(_MESSAGE_FIELD, ())]


def _read_field(raw: bytes) -> Field:
    field = _grouped(raw)
    ref = field.get(_FIELD_REF, [b""])[0].decode()
    name = field[_FIELD_NAME][0].decode()
    return Field(field[_FIELD_NUMBER][0], name, field[_FIELD_TYPE][0], _definition(ref))


def _definition(message: str) -> str:
    """`.k8s.io.api.core.v1.Pod` -> `api.core.v1.Pod`."""
    return message.removeprefix(".").removeprefix("k8s.io.")


def _grouped(raw: bytes) -> dict[int, list[Any]]:
    out: dict[int, list[Any]] = {}
    for number, value in _wire(raw):
        out.setdefault(number, []).append(value)
    return out


def _wire(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values; descriptors have varints and length-delimited fields only."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        value, at = _varint(raw, at)
        if tag & 7 == 2:
            yield tag >> 3, raw[at : at + value]
            at += value
        elif tag & 7 == 0:
            yield tag >> 3, value
        else:
            raise ValueError(f"descriptor: wire type {tag & 7} is not expected")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


class Compiler:
    """Names and marks of every message, judged by the JSON schemas."""

    def __init__(self, messages: Messages, definitions: dict[str, Any]) -> None:
        self._messages = messages
        self._definitions = definitions
        self.table: dict[str, dict[str, str]] = {}

    def compile(self) -> dict[str, dict[str, str]]:
        for name in sorted(self._messages):
            properties = self._schema(name).get("properties")
            if _STABLE.fullmatch(name) and properties:
                self._message(name, name)
        return self.table

    def _schema(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._definitions.get(f"io.k8s.{name}", {})
        return found

    def _message(self, name: str, owner: str) -> None:
        """A message whose fields JSON shows as those of `owner`."""
        rows = self.table[name] = {}
        schema = self._schema(owner)
        by_lower = {key.lower(): key for key in schema["properties"]}
        for field in self._messages[name]:
            json_name = by_lower.get(field.name.lower())
            if json_name is not None:
                rows[str(field.number)] = json_name + self._mark(owner, json_name, field, schema)
            elif field.ref in self._messages:
                rows[str(field.number)] = f"^{field.ref}"
                if field.ref not in self.table:
                    self._message(field.ref, owner)

    def _mark(self, owner: str, name: str, field: Field, schema: dict[str, Any]) -> str:
        node = schema["properties"][name]
        if field.type == _TYPE_MESSAGE:
            values = node.get("additionalProperties", {})
            return "[]" if values.get("type") == "array" else ""
        if name in schema.get("required", ()) or "default" in node or node.get("type") == "array":
            return ""
        path = f"{owner}.{name}"
        if field.type == _TYPE_STRING:
            return "" if path in POINTER_STRINGS else "?"
        return "?" if name in VALUES and path not in POINTERS else ""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: compile_protobuf.py PROGRAM (a Go program, e.g. kubectl 1.33)")
    structure = json.loads(zlib.decompress((DATA / STRUCTURE).read_bytes()))
    messages = read_messages(Path(sys.argv[1]).read_bytes())
    if not messages:
        sys.exit(f"{sys.argv[1]}: no descriptors; take a Go program that links k8s.io/api <= 1.33")
    table = Compiler(messages, structure["definitions"]).compile()
    text = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    content = zlib.compress(text, 9)
    (DATA / NUMBERS).write_bytes(content)
    print(f"{NUMBERS}: {len(table)} messages, {len(content)} bytes")


if __name__ == "__main__":
    main()
