"""TLS, SASL and passwords by settings, against a broker and a Redis that insist on them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from pipeline.__main__ import main
from pipeline.checks.finding import Facts, Level
from pipeline.checks.kafka import check_kafka
from pipeline.errors import TidewatchError
from pipeline.records import Partition
from pipeline.servers import EmbeddedRedis, create_topics
from pipeline.settings import Settings
from pipeline.sources.base import CommittedOffset
from pipeline.topics.kafka import Cluster
from pipeline.topics_command import planned
from pipeline.wiring import build_cluster, build_sink, build_source, build_store, security_options
from tests.real_kafka import joined, unique
from tests.secure import Authority, SecureKafka, TlsProxy

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # kafka-python 3.0.12 leaves sockets on which it was refused to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed <(ssl|socket):ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

USER, PASSWORD = "tidewatch", "p ss=w0rd;,"
TOPIC, OUTPUTS = "secured", ("scores_topic", "alerts_topic", "dead_letter_topic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates and secrets."""
    made = tmp_path_factory.mktemp("secure")
    (made / "password").write_text(PASSWORD + "\n")
    return made


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    """Whom both sides trust."""
    return Authority(folder)


@pytest.fixture(scope="module")
def kafka(folder: Path, authority: Authority) -> Iterator[SecureKafka]:
    """A broker with users."""
    with SecureKafka(folder, authority, USER, PASSWORD.replace('"', r"\"")) as broker:
        admin = KafkaAdminClient(bootstrap_servers=broker.address)
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            admin.alter_user_scram_credentials([UserScramCredentialUpsertion(USER, mechanism, PASSWORD)])
        admin.create_acls(granted())
        admin.close()
        create_topics(broker.address, {TOPIC: 1})
        yield broker


def granted() -> list[ACL]:
    """Exactly the rights that deploy/kafka/README.md asks for."""
    inputs = [(ResourceType.TOPIC, name, ("READ", "DESCRIBE")) for name in (TOPIC, "in-")]
    outputs = [(ResourceType.TOPIC, f"{name}-", ("READ", "WRITE", "DESCRIBE")) for name in OUTPUTS]
    group = [(ResourceType.GROUP, "g-", ("READ",)), (ResourceType.TRANSACTIONAL_ID, "g-", ("WRITE", "DESCRIBE"))]
    create = [(ResourceType.CLUSTER, "kafka-cluster", ("CREATE",))]
    return [
        ACL(
            f"User:{USER}",
            "*",
            ACLOperation[operation],
            ACLPermissionType.ALLOW,
            ResourcePattern(
                kind,
                name,
                ACLResourcePatternType.LITERAL if kind is ResourceType.CLUSTER else ACLResourcePatternType.PREFIXED,
            ),
        )
        for kind, name, operations in inputs + outputs + group + create
        for operation in operations
    ]


def security(kind: str, folder: Path, authority: Authority) -> dict[str, Any]:
    """The section [kafka.security], passwords by file."""
    if kind == "ssl":
        own = authority.identity("client")
        return {"protocol": "SSL", "ca_file": authority.ca_file, "cert_file": own.cert_file, "key_file": own.key_file}
    sasl = {"username": USER, "password_file": str(folder / "password")}
    if kind == "plain":
        return {"protocol": "SASL_SSL", "mechanism": "PLAIN", "ca_file": authority.ca_file, **sasl}
    return {"protocol": "SASL_PLAINTEXT", "mechanism": kind, **sasl}


def settings_for(kafka: SecureKafka, kind: str, given: dict[str, Any]) -> Settings:
    """Settings of a client of one of the listeners."""
    place = kafka.place("scram" if kind.startswith("SCRAM") else kind)
    section = {"bootstrap_servers": [place], "group": unique("g"), "call_deadline_s": 5.0, "security": given}
    names = {key: unique(key) for key in OUTPUTS}
    topics = {"network": {"topics": [TOPIC]}, "sensor": {"topics": [unique("in")]}}
    return Settings.load(overrides={"kafka": section | names, "profiles": topics})


KINDS = ("ssl", "plain", "SCRAM-SHA-256", "SCRAM-SHA-512")


@pytest.mark.parametrize("kind", KINDS)
def test_every_client_gets_through(kind: str, kafka: SecureKafka, folder: Path, authority: Authority) -> None:
    """Source, transactional sink, topics, feeder, bookmark, check: with the rights that the documentation asks for.

    A client that forgets its options, or a right that was forgotten, is found out on the first secured cluster.
    """
    settings = settings_for(kafka, kind, security(kind, folder, authority))
    cluster = build_cluster(settings)
    for name in planned(settings):
        if name != TOPIC:
            cluster.create({name: 1})
    with Cluster(kafka.address).feeder() as feeder:  # somebody else's producer
        feeder.send(TOPIC, b"k", b"v")
        feeder.flush()
    with cluster.feeder() as feeder:
        feeder.send(settings.kafka.alerts_topic, b"k", b"v")
        feeder.flush()
    with cluster.reader(TOPIC) as reader:
        assert reader.end()[Partition(TOPIC, 0)] > 0
    source, sink = build_source(settings, "w"), build_sink(settings, "w")
    try:
        note = joined(source, timeout_s=0.2)
        sink.add(settings.kafka.alerts_topic, b"k", b"v")
        sink.commit({Partition(TOPIC, 0): CommittedOffset(1, "")}, note)
    finally:
        sink.close()
        source.close()
    assert cluster.committed(settings.kafka.group)[Partition(TOPIC, 0)].offset == 1
    with cluster.bookmark(settings.kafka.group) as bookmark:
        assert bookmark.committed({Partition(TOPIC, 0): 9}) == {Partition(TOPIC, 0): 1}
    options = security_options(settings.kafka.security)
    findings = list(check_kafka(settings, options, Facts()))
    assert not [finding.text for finding in findings if finding.level is Level.PROBLEM]
    may_ask = kind == "ssl"  # the certificate's user may do everything
    assert any("DescribeConfigs" in finding.text for finding in findings) is not may_ask


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_secret_is_refused_and_not_shown(
    kind: str, kafka: SecureKafka, folder: Path, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger stays out, is told why, and no log has the password that was tried."""
    wrong = security(kind, folder, Authority(tmp_path, "strangers") if kind in ("ssl", "plain") else authority)
    if kind != "ssl":
        (tmp_path / "wrong").write_text("s3cret-but-wrong")
        wrong["password_file"] = str(tmp_path / "wrong")
    settings = settings_for(kafka, kind, wrong)
    with caplog.at_level(logging.DEBUG), pytest.raises(TidewatchError, match=r"is kafka\.security right") as refused:
        build_cluster(settings).topics()
    assert "s3cret" not in str(refused.value) + repr(settings) + caplog.text
    assert PASSWORD not in caplog.text


def test_redis_with_password_and_tls(folder: Path, authority: Authority, tmp_path: Path) -> None:
    """The store connects with what the settings say, and not without it."""
    server, client = authority.identity("redis"), authority.identity("redis-client")
    with EmbeddedRedis(tmp_path / "redis") as plain, TlsProxy(plain.port, server, authority) as proxy:
        redis.Redis(port=plain.port).config_set("requirepass", PASSWORD)
        section = {
            "url": f"rediss://127.0.0.1:{proxy.port}/0",
            "password_file": str(folder / "password"),
            "ca_file": authority.ca_file,
            "cert_file": client.cert_file,
            "key_file": client.key_file,
        }
        settings = Settings.load(overrides={"redis": section})
        assert PASSWORD not in repr(settings)
        store = build_store(settings)
        store.check()
        store.close()
        without = (
            section | {"password_file": str(authority.ca_file)},
            {key: value for key, value in section.items() if key not in ("cert_file", "key_file")},
            section | {"ca_file": Authority(tmp_path / "strangers").ca_file},
        )
        for wrong in without:
            store = build_store(Settings.load(overrides={"redis": wrong}))
            with pytest.raises(TidewatchError):
                store.check()
            store.close()


def test_check_says_what_is_wrong_without_the_secret(
    kafka: SecureKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tidewatch check` is pasted into tickets."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka.place("scram"))
    monkeypatch.setenv("TIDEWATCH_KAFKA__CALL_DEADLINE_S", "3")
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret@127.0.0.1:1/0")
    given = {"protocol": "SASL_PLAINTEXT", "mechanism": "SCRAM-SHA-512", "username": USER, "password": "s3cret"}
    for key, value in given.items():
        monkeypatch.setenv(f"TIDEWATCH_KAFKA__SECURITY__{key.upper()}", value)
    assert main(["check"]) == 1
    said = capsys.readouterr()
    assert "kafka" in said.out
    assert "s3cret" not in said.out + said.err
