"""Certificates, a broker that asks who you are, and TLS in front of a Redis: what only a secured cluster has."""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.servers import HOST, EmbeddedKafka, free_port

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key, as PEM files."""

    cert_file: Path
    key_file: Path


class Authority:
    """Signs certificates; its own is in :attr:`ca_file`."""

    def __init__(self, folder: Path, name: str = "tests") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = self._key.public_key()
        is_authority = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        certificate = (
            _begun(self._name, self._name, public)
            .add_extension(is_authority, critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def identity(self, name: str) -> Identity:
        """A certificate for this machine's loopback address."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address(HOST))])
        certificate = (
            _begun(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), self._name, key.public_key())
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        made = Identity(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        made.cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        made.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return made


def _begun(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )


class SecureKafka(EmbeddedKafka):
    """A broker with an open listener for setting things up, and three for clients.

    ``ssl`` asks for a client certificate, ``plain`` for SASL PLAIN over TLS, ``scram`` for SCRAM without TLS.
    """

    def __init__(self, folder: Path, authority: Authority, username: str, password: str) -> None:
        port, controller = free_port(), free_port()
        self.ports = {"ssl": free_port(), "plain": free_port(), "scram": free_port()}
        server = authority.identity("kafka")
        keystore = folder / "keystore.pem"
        keystore.parent.mkdir(parents=True, exist_ok=True)
        keystore.write_bytes(server.key_file.read_bytes() + server.cert_file.read_bytes())
        outside = ",".join(f"{name.upper()}://{HOST}:{number}" for name, number in self.ports.items())
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        super().__init__(
            folder / "kafka",
            port,
            properties={
                "listeners": f"BROKER://{HOST}:{port},CONTROLLER://{HOST}:{controller},{outside}",
                "advertised.listeners": f"BROKER://{HOST}:{port},{outside}",
                "controller.quorum.bootstrap.servers": f"{HOST}:{controller}",
                "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,PLAIN:SASL_SSL,"
                "SCRAM:SASL_PLAINTEXT",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(keystore),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(authority.ca_file),
                "listener.name.ssl.ssl.client.auth": "required",
                "listener.name.plain.sasl.enabled.mechanisms": "PLAIN",
                "listener.name.plain.plain.sasl.jaas.config": f'{plain} user_{username}="{password}";',
                "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512",
                "listener.name.scram.scram-sha-256.sasl.jaas.config": scram,
                "listener.name.scram.scram-sha-512.sasl.jaas.config": scram,
                # Whoever has a user's name may do what was granted; the open listener and certificates everything.
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS;User:CN=client",
            },
        )

    def place(self, name: str) -> str:
        """Where a listener is."""
        return f"{HOST}:{self.ports[name]}"


class TlsProxy:
    """TLS on a port of its own, in front of a server that has none; asks for a client certificate of ``authority``."""

    def __init__(self, port: int, server: Identity, authority: Authority) -> None:
        self._port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(server.cert_file, server.key_file)
        self._context.load_verify_locations(authority.ca_file)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            each.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            try:
                client: socket.socket = self._context.wrap_socket(raw, server_side=True)
            except OSError:
                raw.close()
                continue
            server = socket.create_connection((HOST, self._port))
            self._open += [client, server]
            for here, there in ((client, server), (server, client)):
                threading.Thread(target=_pass_on, args=(here, there), daemon=True).start()


def _pass_on(here: socket.socket, there: socket.socket) -> None:
    try:
        while data := here.recv(65_536):
            there.sendall(data)
        there.shutdown(socket.SHUT_WR)
    except (OSError, ValueError):
        return
