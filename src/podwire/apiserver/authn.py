"""Who is asking: client certificates, service account tokens, or the trusted unix socket.

    TLS + client certificate  CN is the user, every O a group
    TLS + bearer token        an ES256 JWT this server signed for a ServiceAccount that exists
    unix socket               trusted by file permission: system:masters

Anything else is 401. Source: apiserver pkg/authentication/request/x509, pkg/serviceaccount.
"""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from podwire.apiserver.request import User
from podwire.errors import UnauthorizedError
from podwire.objects.meta import JsonObject

ISSUER = "https://kubernetes.default.svc.cluster.local"
ADMIN = User("system:admin", ("system:masters", "system:authenticated"))
AUTHENTICATED = "system:authenticated"
_HALF = 32  # bytes of r and of s in an ES256 signature (RFC 7518 section 3.4)


def unauthorized() -> UnauthorizedError:
    return UnauthorizedError("Unauthorized")


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class TokenSigner:
    """Signs and verifies service account tokens (JWT, ES256)."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, account_uid: Callable[[str, str], str]):
        self._key = key
        self._account_uid = account_uid
        """(namespace, name) -> the uid of a ServiceAccount that exists, else ""."""
        self._verified: dict[str, JsonObject] = {}

    def sign(
        self,
        namespace: str,
        account: str,
        uid: str,
        *,
        audiences: list[str],
        lifetime_s: int,
        bound: JsonObject | None = None,
    ) -> str:
        """A token; `bound` is the object it is bound to, e.g. `{"pod": {"name", "uid"}}`."""
        now = int(time.time())
        private: JsonObject = {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": uid},
            **(bound or {}),
        }
        claims = {
            "aud": audiences,
            "exp": now + lifetime_s,
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": private,
            "sub": f"system:serviceaccount:{namespace}:{account}",
        }
        header = {"alg": "ES256", "typ": "JWT"}
        signed = f"{_b64(msgspec.json.encode(header))}.{_b64(msgspec.json.encode(claims))}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_b64(r.to_bytes(_HALF, 'big') + s.to_bytes(_HALF, 'big'))}"

    def verify(self, token: str) -> User:
        """The account a token speaks for. Raises UnauthorizedError."""
        claims = self._verified.get(token)
        if claims is None:
            claims = self._claims(token)
            if len(self._verified) > 4096:
                self._verified.clear()
            self._verified[token] = claims
        now = time.time()
        if not claims["nbf"] - 60 <= now < claims["exp"] or claims["iss"] != ISSUER:
            raise unauthorized()
        private = claims["kubernetes.io"]
        namespace, account = private["namespace"], private["serviceaccount"]
        if self._account_uid(namespace, account["name"]) != account["uid"]:
            raise unauthorized()
        groups = (
            "system:serviceaccounts",
            f"system:serviceaccounts:{namespace}",
            AUTHENTICATED,
        )
        return User(claims["sub"], groups, account["uid"])

    def _claims(self, token: str) -> JsonObject:
        try:
            signed, _, signature = token.rpartition(".")
            raw = _unb64(signature)
            der = encode_dss_signature(
                int.from_bytes(raw[:_HALF], "big"), int.from_bytes(raw[_HALF:], "big")
            )
            self._key.public_key().verify(der, signed.encode(), ec.ECDSA(hashes.SHA256()))
            claims: JsonObject = msgspec.json.decode(_unb64(signed.partition(".")[2]))
        except (ValueError, InvalidSignature, msgspec.MsgspecError) as error:
            raise unauthorized() from error
        return claims


def authenticate(
    transport: asyncio.BaseTransport | None, authorization: str, signer: TokenSigner
) -> User:
    """The user behind one request. Raises UnauthorizedError."""
    if transport is None:
        raise unauthorized()
    if transport.get_extra_info("sslcontext") is None:
        return ADMIN
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer" and token:
        return signer.verify(token.strip())
    certificate = transport.get_extra_info("peercert")
    if not certificate:
        raise unauthorized()
    return user_of_certificate(certificate)


def user_of_certificate(certificate: dict[str, Any]) -> User:
    """CN and O of a verified certificate, as `ssl.SSLSocket.getpeercert` gives it."""
    names = [pair for rdn in certificate.get("subject", ()) for pair in rdn]
    user = next((value for key, value in names if key == "commonName"), "")
    if not user:
        raise unauthorized()
    groups = tuple(value for key, value in names if key == "organizationName")
    return User(user, (*groups, AUTHENTICATED))
