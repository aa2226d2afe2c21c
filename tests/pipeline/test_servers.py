"""The embedded servers are real, end with their owner, and keep what they promise to keep."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from pipeline.errors import BrokerAway, ConfigurationError
from pipeline.servers import HOST, EmbeddedKafka, EmbeddedRedis, create_topics, free_port

pytestmark = pytest.mark.integration

OWNER = """
import sys
from pipeline.servers import EmbeddedRedis
server = EmbeddedRedis(sys.argv[1])
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_redis_keeps_what_was_saved_over_a_kill(tmp_path: Path) -> None:
    """Tests of lost writes need a server that goes back to a known moment."""
    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.address) as client:
        client.set("kept", 1)
        client.save()
        client.set("lost", 1)
        port = server.port
        server.kill()
        server.restart()
        assert server.port == port
        assert client.keys() == [b"kept"]


def test_durable_redis_keeps_every_write_over_a_stop(tmp_path: Path) -> None:
    """A user's first steps must survive Ctrl-C."""
    with EmbeddedRedis(tmp_path, durable=True) as server, redis.Redis.from_url(server.address) as client:
        client.set("kept", 1)
    with EmbeddedRedis(tmp_path, durable=True) as server, redis.Redis.from_url(server.address) as client:
        assert client.keys() == [b"kept"]


def test_a_suspended_server_can_be_stopped(tmp_path: Path) -> None:
    """A test that fails between suspend and resume must not leave a process behind."""
    with EmbeddedRedis(tmp_path) as server:
        pid = server.pid
        server.suspend()
    assert not is_running(pid)


def test_the_server_ends_with_its_owner_even_when_that_is_killed(tmp_path: Path) -> None:
    """No run may leave servers behind, whatever ended it."""
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        handle = os.pidfd_open(server)
        owner.send_signal(signal.SIGKILL)
        ended, _, _ = select.select([handle], [], [], 10)
        os.close(handle)
        assert ended
    assert not is_running(server)


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    """The message must name the port, not show a server's log."""
    with EmbeddedRedis(tmp_path / "first") as first, pytest.raises(ConfigurationError, match=str(first.port)):
        EmbeddedRedis(tmp_path / "second", port=first.port).start()


def test_a_folder_holds_one_server_at_a_time(tmp_path: Path) -> None:
    """A second one would write its settings over those of the first, and end as soon as it found the data locked."""
    with EmbeddedRedis(tmp_path) as first:
        with pytest.raises(ConfigurationError, match=r"is in use by another redis: choose another folder"):
            EmbeddedRedis(tmp_path).start()
        assert redis.Redis(HOST, first.port).ping()
        first.restart()
    with EmbeddedRedis(tmp_path) as next_one:
        assert redis.Redis(HOST, next_one.port).ping()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """One line, not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot hold the data of redis: Not a directory"):
        EmbeddedRedis(tmp_path / "file" / "redis").start()


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_number_that_is_no_port_is_said(tmp_path: Path, port: int) -> None:
    """The socket would overflow."""
    with pytest.raises(ConfigurationError, match=f"{port} is no port for redis: from 1 to 65535"):
        EmbeddedRedis(tmp_path, port).start()


def test_a_server_that_cannot_start_shows_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    """What is wrong stands in the server's own words."""
    (tmp_path / "dump.rdb").write_bytes(b"not a dump")
    with pytest.raises(ConfigurationError, match="Wrong signature"):
        EmbeddedRedis(tmp_path).start()


def test_topics_are_created_once(kafka_bootstrap: str) -> None:
    """Every role may create what it needs without asking who was first."""
    create_topics(kafka_bootstrap, {"servers-a": 3, "servers-b": 1})
    create_topics(kafka_bootstrap, {"servers-a": 5, "servers-c": 2}, {"cleanup.policy": "compact"})
    client = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    found = {topic["name"]: len(topic["partitions"]) for topic in client.describe_topics()}
    client.close()
    assert {name: found[name] for name in ("servers-a", "servers-b", "servers-c")} == {
        "servers-a": 3,
        "servers-b": 1,
        "servers-c": 2,
    }


def test_creating_topics_without_a_broker_says_so() -> None:
    """A command must not hang on a wrong address."""
    with pytest.raises(BrokerAway):
        create_topics(f"{HOST}:{free_port()}", {"a": 1}, deadline_s=1.0)


@pytest.mark.slow
def test_kafka_keeps_records_over_a_kill_on_the_same_port(tmp_path: Path) -> None:
    """Broker crashes are part of the promises; the address must not change under the clients."""
    with EmbeddedKafka(tmp_path) as kafka:
        create_topics(kafka.address, {"a": 1})
        producer = KafkaProducer(bootstrap_servers=kafka.address, acks="all")
        producer.send("a", b"before").get(timeout=10)
        producer.close()
        kafka.kill()
        kafka.restart()
        consumer = KafkaConsumer(bootstrap_servers=kafka.address, auto_offset_reset="earliest", group_id=None)
        consumer.assign([TopicPartition("a", 0)])
        found = consumer.poll(timeout_ms=20_000)
        consumer.close()
    assert [record.value for records in found.values() for record in records] == [b"before"]
