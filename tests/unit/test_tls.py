import contextlib
import logging
import os
import shutil
import socket
import ssl
import struct
import threading
import time
from argparse import Namespace
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from kafka.errors import (
    KafkaError,
)

import eventkafkapostgres.workarounds
from eventkafkapostgres.outages import SettingsError
from eventkafkapostgres.tls import Certificates, Expiry, expiry_dates, expiry_text
from eventkafkapostgres.workarounds import DataBeforeEnd

# TLS


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """Paths of a CA's certificate, two clients' certificates and keys, an encrypted key, and a text that is no PEM."""
    from cryptography.hazmat.primitives import serialization as pem

    folder = tmp_path_factory.mktemp("pem")
    ca = trustme.CA()
    files = Namespace(ca=str(folder / "ca.pem"), text=str(folder / "text.pem"), folder=str(folder))
    ca.cert_pem.write_to_path(files.ca)
    (folder / "text.pem").write_text("no certificate")
    for name in ("one", "other"):
        issued = ca.issue_cert(f"{name}.example")
        setattr(files, name, str(folder / f"{name}.cert"))
        setattr(files, f"{name}_key", str(folder / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.cert")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    key = pem.load_pem_private_key((folder / "one.key").read_bytes(), None)
    files.locked_key = str(folder / "locked.key")
    (folder / "locked.key").write_bytes(
        key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"s3cret"))
    )
    return files


def tls_context(options):
    return Certificates(options).context


def tls(protocol="SSL", **options):
    return {"security_protocol": protocol, **{f"ssl_{name}": value for name, value in options.items()}}


def test_tls_checks_the_broker_and_its_handshake_has_a_deadline(pem):
    options = tls(cafile=pem.ca, certfile=pem.one, keyfile=pem.one_key) | {"client_id": "x"}
    context = tls_context(options)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.sslsocket_class is DataBeforeEnd
    assert options == {"security_protocol": "SSL", "client_id": "x"}  # kafka-python gets the context instead


@pytest.mark.parametrize(
    ("protocol", "has_context"), [("SSL", True), ("SASL_SSL", True), ("PLAINTEXT", False), ("SASL_PLAINTEXT", False)]
)
def test_only_a_protocol_with_tls_gets_a_context(pem, protocol, has_context):
    assert (tls_context(tls(protocol, cafile=pem.ca)) is not None) == has_context


def test_the_check_of_the_host_name_ends_only_where_it_is_switched_off(pem):
    context = tls_context(tls(cafile=pem.ca, check_hostname=False))
    assert not context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_a_key_with_a_password_is_opened_with_it(pem):
    assert tls_context(tls(cafile=pem.ca, certfile=pem.one, keyfile=pem.locked_key, password="s3cret"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cafile": "/nowhere/ca.pem"}, "KAFKA_SSL_CAFILE: can't read /nowhere/ca.pem: No such file or directory"),
        ({"certfile": "/nowhere/c"}, "KAFKA_SSL_CERTFILE: can't read /nowhere/c"),
        ({"keyfile": "/nowhere/k"}, "KAFKA_SSL_KEYFILE: can't read /nowhere/k"),
        ({"crlfile": "/nowhere/crl"}, "KAFKA_SSL_CRLFILE: can't read /nowhere/crl"),
        ({"cafile": "folder"}, "KAFKA_SSL_CAFILE: can't read .*: Is a directory"),
        ({"cafile": "text"}, "KAFKA_SSL_CAFILE holds no certificate in PEM format"),
        ({"crlfile": "text"}, "KAFKA_SSL_CRLFILE holds no revocation list in PEM format"),
        ({"ciphers": "ROT13"}, "KAFKA_SSL_CIPHERS names no cipher that OpenSSL has"),
        ({"keyfile": "other_key"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"keyfile": "text"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"keyfile": "ca"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"certfile": "text"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"keyfile": "locked_key"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"keyfile": "locked_key", "password": "wr0ng"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"keyfile": None}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"certfile": None}, "KAFKA_SSL_CERTFILE is not set, but KAFKA_SSL_KEYFILE is"),
    ],
)
def test_a_file_that_does_not_do_is_named(pem, wrong, message):
    right = {"cafile": pem.ca, "certfile": pem.one, "keyfile": pem.one_key}
    files = {name: getattr(pem, value or "", value) for name, value in wrong.items()}
    with pytest.raises(SettingsError, match=message) as caught:
        tls_context(tls(**(right | files)))
    assert "\n" not in str(caught.value)
    assert "wr0ng" not in str(caught.value)


def test_a_connection_that_is_reset_before_its_tls_is_an_error_that_kafka_python_expects(pem):
    context = tls_context(tls(cafile=pem.ca, certfile=pem.one, keyfile=pem.one_key))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # a reset, which on loopback is there at once
        with pytest.raises(KafkaError):
            context.wrap_socket(client, server_hostname="127.0.0.1", do_handshake_on_connect=False)


def test_a_handshake_with_a_peer_that_stays_silent_ends(pem, monkeypatch):
    monkeypatch.setattr(eventkafkapostgres.workarounds, "HANDSHAKE_SECONDS", 0.01)
    ours, silent = socket.socketpair()
    with silent, ours:
        context = tls_context(tls(cafile=pem.ca))
        began = time.monotonic()
        with (
            context.wrap_socket(ours, server_hostname="a.example", do_handshake_on_connect=False) as wrapped,
            pytest.raises(TimeoutError),
        ):
            wrapped.do_handshake()
        assert time.monotonic() - began < 4


def test_after_the_handshake_the_socket_blocks_nobody(pem):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem.one, pem.one_key)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        accepted = threading.Thread(target=lambda: server.wrap_socket(theirs, server_side=True).close())
        accepted.start()
        context = tls_context(tls(cafile=pem.ca))
        with context.wrap_socket(ours, server_hostname="one.example", do_handshake_on_connect=False) as wrapped:
            wrapped.do_handshake()
            assert wrapped.version()
            assert wrapped.gettimeout() == 0.0
        accepted.join()


def certificate_shown(context, pem):
    """The serial number of the client certificate that a broker sees; the bytes go through memory."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem.one, pem.one_key)
    server.load_verify_locations(pem.ca)
    server.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        context.wrap_bio(to_client, to_server, server_hostname="one.example"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(3):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[1].getpeercert()["serialNumber"]


def test_certificates_that_were_renewed_on_disk_are_used_and_half_written_ones_are_not(pem, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cert, key = tmp_path / "cert", tmp_path / "key"
    shutil.copy(pem.one, cert)
    shutil.copy(pem.one_key, key)
    certificates = Certificates(tls(cafile=pem.ca, certfile=str(cert), keyfile=str(key)))
    certificates.renew()
    assert caplog.messages == []
    old, before = certificate_shown(certificates.context, pem), cert.stat()
    shutil.copy(pem.other, cert)
    os.utime(cert, ns=(before.st_mtime_ns, before.st_mtime_ns))
    certificates.renew()
    assert certificate_shown(certificates.context, pem) == old
    (message,) = caplog.messages
    assert "can't be used, the old ones are: KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE" in message
    shutil.copy(pem.other_key, key)
    certificates.renew()
    certificates.renew()
    assert certificate_shown(certificates.context, pem) != old
    assert caplog.messages[1:] == ["the certificates on disk were renewed: new connections use them"]


def test_files_that_are_gone_are_logged_once_and_again_when_they_are_gone_again(pem, tmp_path, caplog):
    ca = tmp_path / "ca.pem"
    shutil.copy(pem.ca, ca)
    certificates = Certificates(tls(cafile=str(ca)))
    for _ in range(2):
        ca.unlink()
        certificates.renew()
        certificates.renew()
        shutil.copy(pem.ca, ca)
        certificates.renew()
    gone = [message for message in caplog.messages if "can't be used, the old ones are" in message]
    assert len(gone) == 2
    assert all(str(ca) in message for message in gone)


def expiring(days, name="a.example"):
    """A certificate that expires in so many days and an hour, in PEM, with its key."""
    issued = trustme.CA().issue_cert(name, not_after=datetime.now(UTC) + timedelta(days=days, hours=1))
    return issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes()


def test_a_certificate_that_expires_soon_is_logged_once_a_day(pem, tmp_path, caplog):
    for path, content in zip((tmp_path / "cert", tmp_path / "key"), expiring(7), strict=True):
        path.write_bytes(content)
    files = {"cafile": pem.ca, "certfile": str(tmp_path / "cert"), "keyfile": str(tmp_path / "key")}
    certificates = Certificates(tls(**files))
    assert next(certificates.expiries(datetime.now(UTC))) == Expiry("KAFKA_SSL_CERTFILE", 1, 7)
    certificates.renew()
    certificates.renew()
    assert caplog.messages == ["KAFKA_SSL_CERTFILE expires in 7 days: get a new one"]


def test_a_bundle_of_cas_is_as_good_as_its_best_and_its_comments_may_be_in_any_encoding(tmp_path, caplog):
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes("# Zürich\n".encode("latin-1") + b"".join(expiring(days)[0] for days in (-1400, 3, 900, -2)))
    certificates = Certificates(tls(cafile=str(bundle)))
    assert [*certificates.expiries(datetime.now(UTC))] == [Expiry("KAFKA_SSL_CAFILE", 4, 900)]
    certificates.renew()
    assert caplog.messages == []


def test_a_bundle_in_which_all_cas_have_expired_is_reported(tmp_path, caplog):
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"".join(expiring(days)[0] for days in (-1400, -3)))
    Certificates(tls(cafile=str(bundle))).renew()
    assert caplog.messages == ["KAFKA_SSL_CAFILE expired 2 days ago: get a new one"]


def test_a_chain_is_as_good_as_the_first_that_expires(pem, tmp_path):
    (cert, key), (intermediate, _) = expiring(500), expiring(40)
    (tmp_path / "cert").write_bytes(cert + intermediate)
    (tmp_path / "key").write_bytes(key)
    certificates = Certificates(tls(certfile=str(tmp_path / "cert"), keyfile=str(tmp_path / "key")))
    assert [*certificates.expiries(datetime.now(UTC))] == [Expiry("KAFKA_SSL_CERTFILE", 2, 40)]


@pytest.mark.parametrize(
    ("days", "text"),
    [
        (-3, "expired 2 days ago: get a new one"),
        (-2, "expired 1 day ago: get a new one"),
        (0, "expires in 0 days: get a new one"),
        (1, "expires in 1 day: get a new one"),
        (29, "expires in 29 days: get a new one"),
        (30, "expires in 30 days"),
    ],
)
def test_how_long_a_certificate_is_valid_is_given_in_words(days, text):
    assert expiry_text(days) == text


def test_when_each_certificate_in_a_file_expires_is_found():
    ends = [datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)]
    text = ""
    for end in ends:
        chain = trustme.CA().issue_cert("a.example", not_after=end).cert_chain_pems
        text += "a comment\n" + chain[0].bytes().decode()
    assert expiry_dates(text) == ends
    assert expiry_dates("no certificate") == []
