"""HTTPS on 127.0.0.1: who gets in, who gets 401, and what the certificate covers."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import yaml

from podwire.apiserver.app import ApiServer, ServerConfig
from podwire.apiserver.pki import issue_client


async def _get(
    url: str, tls: ssl.SSLContext, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, ssl=tls, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


async def test_credentials(tmp_path: Path) -> None:
    config = ServerConfig(
        store=tmp_path / "store.db",
        pki_dir=tmp_path / "pki",
        tls_addresses=[("127.0.0.1", 0)],
    )
    async with ApiServer(config) as server:
        base = f"https://127.0.0.1:{server.tls_ports[0]}"
        nobody = ssl.create_default_context(cafile=server.pki.ca_cert)
        code, text = await _get(f"{base}/api/v1/pods", nobody)
        assert code == 401
        assert '"reason":"Unauthorized"' in text
        assert (await _get(f"{base}/healthz", nobody)) == (200, "ok")
        forged = {"Authorization": "Bearer a.b.c"}
        assert (await _get(f"{base}/api", nobody, forged))[0] == 401
        someone = ssl.create_default_context(cafile=server.pki.ca_cert)
        someone.load_cert_chain(*issue_client(server.pki, "ann", "ann", ["team"]))
        assert (await _get(f"{base}/api/v1/pods", someone))[0] == 200
        kubeconfig = yaml.safe_load(server.kubeconfig(name="lab"))
        assert kubeconfig["current-context"] == "lab"
        assert kubeconfig["clusters"][0]["cluster"]["server"] == base
    before = (tmp_path / "pki/ca.crt").read_bytes(), (tmp_path / "pki/server.crt").read_bytes()
    async with ApiServer(config):
        pass
    after = (tmp_path / "pki/ca.crt").read_bytes(), (tmp_path / "pki/server.crt").read_bytes()
    assert before == after
    assert (tmp_path / "pki/ca.key").stat().st_mode & 0o77 == 0
