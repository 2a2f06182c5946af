"""TLS on a stand-in's port: a self-signed certificate of its own, then the same recognition inside.

The bytes that told us it is TLS are already read, so the handshake runs over memory buffers rather
than through the event loop's TLS. ALPN offers h2 and http/1.1.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import os
import ssl
import tempfile
from typing import TYPE_CHECKING

from podwire.runtime.standin.endpoint import Endpoint

if TYPE_CHECKING:
    from podwire.runtime.standin.tcp import Speaker, Transport

_CHUNK = 64 * 1024


class Tls:
    """A speaker that decrypts, and the transport of the speaker inside."""

    __slots__ = (
        "_client",
        "_endpoint",
        "_first",
        "_in",
        "_inner",
        "_open",
        "_out",
        "_tls",
        "_under",
    )

    def __init__(self, endpoint: Endpoint, transport: Transport, client: str) -> None:
        self._endpoint = endpoint
        self._under = transport
        self._client = client
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = server_context().wrap_bio(self._in, self._out, server_side=True)
        self._inner: Speaker | None = None
        self._first = b""
        self._open = False

    def feed(self, data: bytes) -> None:
        self._in.write(data)
        try:
            if not self._open:
                self._tls.do_handshake()
                self._open = True
            while plain := self._tls.read(_CHUNK):
                self._deliver(plain)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._flush()
            self._under.close()
            return
        self._flush()

    def _deliver(self, plain: bytes) -> None:
        from podwire.runtime.standin.tcp import recognise, speaker_for

        if self._inner is None:
            self._first += plain
            name = recognise(self._first)
            if name is None:
                return
            name = "raw" if name == "tls" else name
            self._inner = speaker_for(name, self._endpoint, self, self._client)
            plain, self._first = self._first, b""
        self._inner.feed(plain)

    def closed(self) -> None:
        if self._inner is not None:
            self._inner.closed()

    # -- the transport of the inner speaker ------------------------------------------------------

    def write(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def close(self) -> None:
        # An error here only says that the peer has not said goodbye yet; ours is in the buffer.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()
        self._under.close()

    def abort(self) -> None:
        self._under.abort()

    def pause_reading(self) -> None:
        self._under.pause_reading()

    def resume_reading(self) -> None:
        self._under.resume_reading()

    def _flush(self) -> None:
        data = self._out.read()
        if data:
            self._under.write(data)


@functools.cache
def server_context() -> ssl.SSLContext:
    """Made at the first TLS connection of the process; most labs never need it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    key, certificate = _self_signed()
    # The ssl module loads chains from files only.
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "standin.pem")
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            file.write(key + certificate)
        context.load_cert_chain(path)
    return context


def _self_signed() -> tuple[bytes, bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podwire stand-in")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("standin.podwire.dev")]), False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return secret, certificate.public_bytes(pem)
