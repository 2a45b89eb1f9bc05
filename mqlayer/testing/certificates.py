"""Throw-away TLS certificates for brokers on this machine, made by the ``openssl`` command."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from mqlayer.errors import MQError

__all__ = ["CertificateError", "Certificates", "make_certificates"]

_TIMEOUT = 60.0
_AUTHORITY = "keyUsage=critical,keyCertSign,cRLSign"
_EXTENSIONS = """\
subjectAltName=DNS:localhost,IP:127.0.0.1
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
"""


class CertificateError(MQError):
    """The ``openssl`` command is missing or failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """PEM files: an authority, and what it signed for ``localhost`` and ``127.0.0.1``, good for server and client."""

    authority: Path
    certificate: Path
    key: Path

    def pkcs12(self, path: Path, password: str) -> Path:
        """Write certificate and key into one file at *path*, as Java reads them.

        Raises:
            CertificateError: ``openssl`` is missing or failed.
        """
        files = ["-in", self.certificate, "-inkey", self.key, "-certfile", self.authority]
        _openssl("pkcs12", "-export", *files, "-out", path, "-passout", f"pass:{password}")
        return path


def make_certificates(folder: Path, *, days: int = 2) -> Certificates:
    """Make an authority and one certificate in *folder*, good for *days*. For tests only: the keys are not protected.

    Raises:
        CertificateError: ``openssl`` is missing or failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority, authority_key = folder / "authority.pem", folder / "authority.key"
    certificate, key, request = folder / "server.pem", folder / "server.key", folder / "server.csr"
    extensions = folder / "server.ext"
    extensions.write_text(_EXTENSIONS)
    new_key = ["-newkey", "rsa:2048", "-nodes"]
    names = ["-subj", "/CN=mqlayer test authority", "-addext", _AUTHORITY]
    _openssl("req", "-x509", *new_key, "-days", days, *names, "-keyout", authority_key, "-out", authority)
    _openssl("req", *new_key, "-subj", "/CN=localhost", "-keyout", key, "-out", request)
    signed_by = ["-CA", authority, "-CAkey", authority_key, "-CAcreateserial"]
    _openssl("x509", "-req", "-in", request, *signed_by, "-days", days, "-extfile", extensions, "-out", certificate)
    return Certificates(authority=authority, certificate=certificate, key=key)


def _openssl(*arguments: object) -> None:
    command = ["openssl", *(str(argument) for argument in arguments)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)
    except FileNotFoundError as exc:
        raise CertificateError("certificates are made by openssl, which is not installed") from exc
    except subprocess.CalledProcessError as exc:
        raise CertificateError(f"{' '.join(command[:2])} failed: {exc.stderr.strip()}") from exc
