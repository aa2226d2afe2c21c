"""``tidewatch topics`` against a real Kafka."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline.__main__ import main
from pipeline.servers import create_topics
from tests.real_kafka import unique

pytestmark = pytest.mark.integration


@pytest.fixture
def names(kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Topics of this test's own, named in the environment."""
    made = {key: unique(key) for key in ("sensor", "network", "scores", "alerts", "dead_letter")}
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_bootstrap)
    for profile in ("sensor", "network"):
        monkeypatch.setenv(f"TIDEWATCH_PROFILES__{profile.upper()}__TOPICS", made[profile])
    for output in ("scores", "alerts", "dead_letter"):
        monkeypatch.setenv(f"TIDEWATCH_KAFKA__{output.upper()}_TOPIC", made[output])
    monkeypatch.setenv("TIDEWATCH_TOPICS__INPUTS__PARTITIONS", "3")
    monkeypatch.setenv("TIDEWATCH_TOPICS__INPUTS__RETENTION_H", "48")
    return made


@pytest.fixture
def admin(kafka_bootstrap: str) -> Iterator[Any]:
    """Asks the broker."""
    client = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    yield client
    client.close()


def test_missing_topics_are_made_as_planned_and_others_left_alone(
    names: dict[str, str], kafka_bootstrap: str, admin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first command of every deployment; it runs again at each start, beside whatever is there already."""
    create_topics(kafka_bootstrap, {names["network"]: 1})
    assert main(["topics"]) == 1
    said = capsys.readouterr().out.split()
    assert said.count("missing") == 4
    assert main(["topics", "--create"]) == 0
    assert main(["topics", "--create"]) == 0
    assert main(["topics"]) == 0
    capsys.readouterr()
    found = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(list(names.values()))}
    assert found == {
        names["sensor"]: 3, names["network"]: 1, names["scores"]: 4, names["alerts"]: 4, names["dead_letter"]: 1
    }  # fmt: skip
    resource = ConfigResource(ConfigResourceType.TOPIC, names["sensor"], ["retention.ms", "cleanup.policy"])
    configs = admin.describe_configs([resource], config_filter="all")["topic"][names["sensor"]]
    assert configs["retention.ms"]["value"] == str(48 * 3_600_000)
    assert configs["cleanup.policy"]["value"] == "delete"
