"""Self-made TLS certificates: for a DERP server that the DERP map pins, and for Serve without a public name.

The keys are P-256, since every TLS client takes those. They come from the library's own random source: an ECDSA key
pair cannot be drawn through an :class:`~tsnetpy.base.entropy.Entropy`.
"""

import datetime
import hashlib
import ipaddress
from collections.abc import Sequence
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tsnetpy.base.addr import IpBytes
from tsnetpy.base.instant import SECOND

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_COMMON_NAME_MAX: Final = 64  # RFC 5280 appendix A.1, ub-common-name


class SelfSigned(NamedTuple):
    """A certificate, its key, and the name it is pinned by."""

    cert_pem: bytes
    key_pem: bytes
    """PKCS #8, not encrypted: keep it in a file of mode 0600."""
    sha256: str
    """Lower-case hex SHA-256 of the DER form: what goes behind ``sha256-raw:`` in a DERP map."""


def make_self_signed(
    names: Sequence[str], ips: Sequence[IpBytes], days: int, now_wall_ns: int, *, common_name: str = ""
) -> SelfSigned:
    """Return a new server certificate that signs itself.

    Args:
        names: DNS names that it is for.
        ips: addresses that it is for, raw bytes.
        days: how long it is valid; it is also valid for a day before *now_wall_ns*, for clocks that are behind.
        now_wall_ns: the wall clock, nanoseconds since the Unix epoch.
        common_name: the subject; by default the first name or address.

    Raises:
        ValueError: neither a name nor an address, or a name that is not ASCII.
    """
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
    if not alternatives:
        raise ValueError("a certificate needs a name or an address")
    subject_text = common_name or (names[0] if names else str(ipaddress.ip_address(ips[0])))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject_text[:_COMMON_NAME_MAX])])
    now = _EPOCH + datetime.timedelta(seconds=now_wall_ns // SECOND)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    der = certificate.public_bytes(serialization.Encoding.DER)
    return SelfSigned(
        cert_pem=certificate.public_bytes(serialization.Encoding.PEM),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        sha256=hashlib.sha256(der).hexdigest(),
    )


def fingerprint(cert_pem: bytes) -> str:
    """Return the lower-case hex SHA-256 of the DER form of the (first) certificate in *cert_pem*.

    Raises:
        ValueError: no certificate.
    """
    der = x509.load_pem_x509_certificate(cert_pem).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def not_valid_after_ns(cert_pem: bytes) -> int:
    """Return when the certificate ends, nanoseconds since the Unix epoch.

    Raises:
        ValueError: no certificate.
    """
    end = x509.load_pem_x509_certificate(cert_pem).not_valid_after_utc
    return int((end - _EPOCH) // datetime.timedelta(seconds=1)) * SECOND
