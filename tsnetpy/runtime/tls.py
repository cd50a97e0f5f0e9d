"""TLS on the client side over any anyio byte stream, with the three ways a tailnet verifies a server.

``"system"`` is the public web's way. A :class:`PinnedCert` is the ``CertName: sha256-raw:...`` of a DERP map (data path
reference, section 3.4): the leaf must be that very certificate. ``"none"`` is ``InsecureForTests``.
"""

import datetime
import hashlib
import hmac
import ssl
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeAlias

from anyio.abc import ByteStream
from anyio.streams.tls import TLSAttribute, TLSStream

from tsnetpy.base.errors import DecodeError

from . import clock

PIN_PREFIX: Final = "sha256-raw:"


@dataclass(frozen=True, slots=True)
class PinnedCert:
    """A certificate named by the lower-case hex SHA-256 of its DER form."""

    sha256: str

    @classmethod
    def from_cert_name(cls, cert_name: str) -> "PinnedCert | None":
        """Return the pin in a DERP node's ``CertName``, or ``None`` if that is an ordinary name."""
        if not cert_name.startswith(PIN_PREFIX):
            return None
        return cls(cert_name[len(PIN_PREFIX) :].lower())


Verify: TypeAlias = Literal["system", "none"] | PinnedCert | ssl.SSLContext


@cache
def _system_context() -> ssl.SSLContext:
    # Loading the trust store costs tens of milliseconds: once per process.
    return ssl.create_default_context()


@cache
def _unverified_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def connect_tls(
    stream: ByteStream, *, server_hostname: str, verify: Verify = "system", verify_name: str | None = None
) -> TLSStream:
    """Make the TLS handshake as a client and return the encrypted stream; on failure *stream* is closed.

    Args:
        stream: a connected transport.
        server_hostname: sent as SNI unless it is an IP literal (RFC 6066 section 3), and verified unless *verify* says
            otherwise.
        verify: how to decide that this is the right server; a context of the caller's is used as it is.
        verify_name: use this name instead of *server_hostname* for both (a ``CertName`` without a pin).

    Raises:
        ssl.SSLError: the handshake or the verification failed.
        anyio.BrokenResourceError: the transport ended.
    """
    pin: PinnedCert | None = None
    if isinstance(verify, ssl.SSLContext):
        context = verify
    elif isinstance(verify, PinnedCert):
        context, pin = _unverified_context(), verify
    else:
        context = _system_context() if verify == "system" else _unverified_context()
    try:
        # DERP and control servers close without close_notify; both protocols frame their own messages.
        wrapped = await TLSStream.wrap(
            stream,
            server_side=False,
            hostname=verify_name or server_hostname,
            ssl_context=context,
            standard_compatible=False,
        )
        if pin is not None:
            check_pin(pin, wrapped.extra(TLSAttribute.peer_certificate_binary, None), clock.wall_ns())
    except BaseException:
        await stream.aclose()
        raise
    return wrapped


def check_pin(pin: PinnedCert, der: bytes | None, wall_ns: int) -> None:
    """Check that the leaf certificate *der* is the pinned one and in date.

    The name inside is not looked at: the pin already says which certificate it must be, bit for bit.

    Raises:
        ssl.SSLCertVerificationError: it is not, or there is none.
    """
    if der is None:
        raise ssl.SSLCertVerificationError("the server sent no certificate")
    digest = hashlib.sha256(der).hexdigest()
    if not hmac.compare_digest(digest, pin.sha256):
        raise ssl.SSLCertVerificationError("the server's certificate is not the pinned one")
    try:
        not_before, not_after = certificate_validity(der)
    except DecodeError as error:
        raise ssl.SSLCertVerificationError(f"the pinned certificate cannot be read: {error}") from error
    if not not_before <= wall_ns // 1_000_000_000 <= not_after:
        raise ssl.SSLCertVerificationError("the pinned certificate is not valid at this time")


def certificate_validity(der: bytes) -> tuple[int, int]:
    """Return notBefore and notAfter of an X.509 certificate (RFC 5280 section 4.1) in Unix seconds.

    Raises:
        DecodeError: not the DER form of a certificate.
    """
    _, certificate, _ = _tlv(der)
    _, tbs, _ = _tlv(certificate)
    tag, _, rest = _tlv(tbs)
    if tag == 0xA0:  # [0] version, absent in v1
        tag, _, rest = _tlv(rest)
    _, _, rest = _tlv(rest)  # signature algorithm (the serial number went before it)
    _, _, rest = _tlv(rest)  # issuer
    _, validity, _ = _tlv(rest)
    first_tag, first, rest = _tlv(validity)
    second_tag, second, _ = _tlv(rest)
    return _asn1_time(first_tag, first), _asn1_time(second_tag, second)


def _tlv(data: bytes) -> tuple[int, bytes, bytes]:
    """Split one DER element off: tag, content, rest."""
    if len(data) < 2:
        raise DecodeError("truncated DER")
    tag, length, at = data[0], data[1], 2
    if length >= 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4 or len(data) < 2 + size:
            raise DecodeError("bad DER length")
        length = int.from_bytes(data[2 : 2 + size], "big")
        at = 2 + size
    if len(data) < at + length:
        raise DecodeError("truncated DER")
    return tag, data[at : at + length], data[at + length :]


def _asn1_time(tag: int, content: bytes) -> int:
    text = content.decode("ascii", "replace")
    if tag == 0x17 and len(text) == 13:
        # UTCTime: RFC 5280 section 4.1.2.5.1 puts 50-99 into the twentieth century.
        text = ("20" if text[:2] < "50" else "19") + text
    elif tag != 0x18:
        raise DecodeError("no ASN.1 time")
    try:
        moment = datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC)
    except ValueError as error:
        raise DecodeError("bad ASN.1 time") from error
    return int(moment.timestamp())
