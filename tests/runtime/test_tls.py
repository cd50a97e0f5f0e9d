"""TLS: pins, names, dates, against a server on loopback with a certificate made here."""

import datetime
import hashlib
import ipaddress
import pathlib
import ssl

import anyio
import pytest
from anyio.streams.tls import TLSListener
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tsnetpy.base.errors import DecodeError
from tsnetpy.runtime.tls import PinnedCert, certificate_validity, check_pin, connect_tls

pytestmark = pytest.mark.anyio
START = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)


def make_certificate(path: pathlib.Path, years: int = 40) -> tuple[bytes, ssl.SSLContext]:
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "derp.test")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(START.replace(year=START.year + years))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("derp.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, None)
    )
    pem = path / "pair.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return certificate.public_bytes(serialization.Encoding.DER), context


def pin_of(der: bytes) -> PinnedCert:
    return PinnedCert(hashlib.sha256(der).hexdigest())


@pytest.mark.parametrize("years", [10, 40])  # UTCTime and GeneralizedTime
def test_validity_is_read_from_the_certificate(tmp_path: pathlib.Path, years: int) -> None:
    der, _ = make_certificate(tmp_path, years)
    start = int(START.timestamp())
    end = int(START.replace(year=START.year + years).timestamp())
    assert certificate_validity(der) == (start, end)
    check_pin(pin_of(der), der, start * 10**9)
    for moment in (start - 1, end + 1):
        with pytest.raises(ssl.SSLCertVerificationError, match="not valid at this time"):
            check_pin(pin_of(der), der, moment * 10**9)


def test_pin_must_match(tmp_path: pathlib.Path) -> None:
    der, _ = make_certificate(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="not the pinned one"):
        check_pin(PinnedCert("00" * 32), der, 0)
    with pytest.raises(ssl.SSLCertVerificationError, match="no certificate"):
        check_pin(pin_of(der), None, 0)
    assert PinnedCert.from_cert_name("sha256-raw:ABCD") == PinnedCert("abcd")
    assert PinnedCert.from_cert_name("derp.example.com") is None


@given(st.binary(max_size=100))
def test_certificate_reader_raises_only_decode_error(data: bytes) -> None:
    try:
        certificate_validity(data)
    except DecodeError:
        return


@pytest.mark.loopback
async def test_connect_verifies_as_asked(tmp_path: pathlib.Path) -> None:
    der, context = make_certificate(tmp_path)
    names: list[str | None] = []
    context.sni_callback = lambda sock, name, ctx: names.append(name)
    trusting = ssl.create_default_context(cadata=der)

    async def echo(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            try:
                await stream.send(await stream.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def talk(host: str, verify: object, verify_name: str | None = None) -> bytes:
        raw = await anyio.connect_tcp("127.0.0.1", port)
        stream = await connect_tls(raw, server_hostname=host, verify=verify, verify_name=verify_name)  # type: ignore[arg-type]  # each kind in turn
        async with stream:
            await stream.send(b"hello")
            return await stream.receive()

    tls = TLSListener(listener, context, standard_compatible=False)

    async def serve() -> None:
        with anyio.fail_after(20):
            await tls.serve(echo)

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        assert await talk("127.0.0.1", pin_of(der)) == b"hello"
        assert await talk("derp.test", "none") == b"hello"
        assert await talk("derp.test", trusting) == b"hello"
        assert await talk("elsewhere.test", trusting, "derp.test") == b"hello"
        # An address literal is verified but never sent as SNI (RFC 6066 section 3).
        assert await talk("127.0.0.1", trusting) == b"hello"
        assert names == [None, "derp.test", "derp.test", "derp.test", None]
        with pytest.raises(ssl.SSLCertVerificationError):
            await talk("derp.test", PinnedCert("11" * 32))
        with pytest.raises(ssl.SSLCertVerificationError):
            await talk("elsewhere.test", trusting)
        with pytest.raises(ssl.SSLCertVerificationError):
            await talk("derp.test", "system")
        tasks.cancel_scope.cancel()
