"""Keys and certificates of one cluster: a CA, the server's certificate, clients', a kubeconfig.

Everything is EC P-256 (a key and a certificate take about a millisecond) and written once into a
directory only its owner can read; a second start reuses what it finds.

    ca.crt ca.key          signs everything below, trusted by clients and by the server
    server.crt server.key  TLS of the API server
    admin.crt admin.key    CN=kubernetes-admin, O=system:masters
    sa.key                 signs service account tokens
"""

from __future__ import annotations

import base64
import datetime as dt
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from podwire.errors import PodwireError

LIFETIME = dt.timedelta(days=3650)
SKEW = dt.timedelta(minutes=5)
SERVER_NAMES: tuple[str, ...] = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
SERVER_ADDRESSES: tuple[str, ...] = (
    "127.0.0.1",
    "::1",
    "172.30.0.1",
    "fd00:30::1",
    "10.96.0.1",
    "fd00:96::1",
)

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Pki:
    """Where one cluster's credentials are."""

    directory: Path

    @property
    def ca_cert(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def server_cert(self) -> Path:
        return self.directory / "server.crt"

    @property
    def server_key(self) -> Path:
        return self.directory / "server.key"

    def service_account_key(self) -> Key:
        return _load_key(self.directory / "sa.key")

    def kubeconfig(self, server: str, *, name: str = "podwire") -> str:
        """A kubeconfig for the administrator, with everything inline."""
        data = {part: _inline(self.directory / part) for part in ("ca.crt", *ADMIN_FILES)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": name,
                    "cluster": {"server": server, "certificate-authority-data": data["ca.crt"]},
                }
            ],
            "users": [
                {
                    "name": name,
                    "user": {
                        "client-certificate-data": data["admin.crt"],
                        "client-key-data": data["admin.key"],
                    },
                }
            ],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
        text: str = yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False)
        return text


ADMIN_FILES = ("admin.crt", "admin.key")


def ensure_pki(
    directory: str | Path, *, addresses: Sequence[str] = (), names: Sequence[str] = ()
) -> Pki:
    """The credentials in `directory`, made where absent; SANs are the defaults plus those given."""
    pki = Pki(Path(directory))
    pki.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_key, ca = _ensure_ca(pki.directory)
    san: list[x509.GeneralName] = [
        x509.DNSName(name) for name in dict.fromkeys((*SERVER_NAMES, *names))
    ]
    san += [x509.IPAddress(a) for a in _addresses((*SERVER_ADDRESSES, *addresses))]
    if not _covers(pki.server_cert, san):
        _issue(pki.directory, "server", "kube-apiserver", (), san, (ca_key, ca))
    if not (pki.directory / "admin.crt").exists():
        masters = ("system:masters",)
        _issue(pki.directory, "admin", "kubernetes-admin", masters, (), (ca_key, ca))
    if not (pki.directory / "sa.key").exists():
        _write_key(pki.directory / "sa.key", _new_key())
    return pki


def issue_client(pki: Pki, file: str, user: str, groups: Sequence[str] = ()) -> tuple[Path, Path]:
    """A client certificate and key named `file`.crt and .key for a user and its groups."""
    ca_key, ca = _ensure_ca(pki.directory)
    _issue(pki.directory, file, user, groups, (), (ca_key, ca))
    return pki.directory / f"{file}.crt", pki.directory / f"{file}.key"


def _addresses(texts: Sequence[str]) -> list[IPv4Address | IPv6Address]:
    return list(dict.fromkeys(ip_address(text) for text in texts))


def _new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def _load_key(path: Path) -> Key:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PodwireError(f"pki {path}: not an EC key; remove the directory to make new ones")
    return key


def _write(path: Path, data: bytes, mode: int) -> None:
    """Atomically: a killed process leaves no half-written key."""
    partial = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.replace(path)


def _write_key(path: Path, key: Key) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(path, pem, 0o600)


def _write_cert(path: Path, cert: x509.Certificate) -> None:
    _write(path, cert.public_bytes(serialization.Encoding.PEM), 0o644)


def _builder(subject: x509.Name, issuer: x509.Name, key: Key) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + LIFETIME)
    )


def _ensure_ca(directory: Path) -> tuple[Key, x509.Certificate]:
    key_path, cert_path = directory / "ca.key", directory / "ca.crt"
    if key_path.exists() and cert_path.exists():
        return _load_key(key_path), x509.load_pem_x509_certificate(cert_path.read_bytes())
    key = _new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podwire-ca")])
    cert = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(key_path, key)
    _write_cert(cert_path, cert)
    return key, cert


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issue(
    directory: Path,
    file: str,
    user: str,
    groups: Sequence[str],
    san: Sequence[x509.GeneralName],
    ca: tuple[Key, x509.Certificate],
) -> None:
    ca_key, ca_cert = ca
    key = _new_key()
    subject = x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
            x509.NameAttribute(NameOID.COMMON_NAME, user),
        ]
    )
    usage = ExtendedKeyUsageOID.SERVER_AUTH if san else ExtendedKeyUsageOID.CLIENT_AUTH
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = (
        _builder(subject, ca_cert.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(authority, critical=False)
    )
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    _write_key(directory / f"{file}.key", key)
    _write_cert(directory / f"{file}.crt", builder.sign(ca_key, hashes.SHA256()))


def _covers(path: Path, san: Sequence[x509.GeneralName]) -> bool:
    if not path.exists():
        return False
    cert = x509.load_pem_x509_certificate(path.read_bytes())
    held = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(san) <= set(held)


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
