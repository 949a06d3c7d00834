"""Certificates for one test: an authority, a server on this machine, and a client."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Certificates", "make_certificates"]

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


@dataclass(frozen=True)
class Certificates:
    """Files in PEM; ``server`` and ``client`` hold their private keys, too."""

    authority: Path
    server: Path
    client: Path


def make_certificates(folder: Path) -> Certificates:
    """Make them in a folder; the server's is for ``localhost`` and ``127.0.0.1``."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    # Python 3.13 wants to be told that this one may sign others.
    may_sign = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    new = ["-x509", *_KEY, *may_sign, "-days", "2", "-subj", "/CN=authority"]
    openssl("req", *new, "-keyout", "authority.key", "-out", "ca.pem")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for who in ("server", "client"):
        openssl("req", *_KEY, "-subj", f"/CN={who}", "-keyout", f"{who}.key", "-out", f"{who}.csr")
        signed = ["-CA", "ca.pem", "-CAkey", "authority.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{who}.csr", *signed, "-out", f"{who}.crt")
        (folder / f"{who}.pem").write_text((folder / f"{who}.key").read_text() + (folder / f"{who}.crt").read_text())
    return Certificates(folder / "ca.pem", folder / "server.pem", folder / "client.pem")
