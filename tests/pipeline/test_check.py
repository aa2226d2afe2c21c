"""`tidewatch check`: what it finds, on real servers and without."""

from __future__ import annotations

import uuid
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import redis

from models.config import PredictorConfig
from models.pretrained import WEIGHTS_FILE, Weights
from pipeline.__main__ import main
from pipeline.checks.finding import Level
from pipeline.checks.kafka import check_kafka
from pipeline.checks.redis import check_redis
from pipeline.checks.row import STREAM_ID_BYTES, cost_of, describe_row, layout_of
from pipeline.checks.versions import check_versions
from pipeline.registry import Registry
from pipeline.servers import create_topics, free_port
from pipeline.settings import Kafka, Profile, Redis, Settings
from pipeline.settings import Registry as RegistrySettings
from pipeline.state.base import HEADER
from pipeline.state.codec import encode_many


def make_settings(tmp_path: Path, **sections: object) -> Settings:
    """Settings with a registry of their own; sections as given."""
    return Settings(registry=RegistrySettings(folder=tmp_path / "registry"), **sections)  # type: ignore[arg-type]


def make_profile(**changed: object) -> Profile:
    """A profile of one feature."""
    return Profile.model_validate({"topics": ["t"], "features": ["value"], "interval_s": 60, **changed})


def test_shipped_settings_are_ready_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A newcomer's first check passes, and says what it left out; nothing is written by it."""
    settings = tmp_path / "tidewatch.toml"
    settings.write_text(f'[registry]\nfolder = "{tmp_path / "registry"}"\n')
    assert main(["check", "--offline", "--settings", str(settings)]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1].startswith("ready (connections not checked)")
    assert not (tmp_path / "registry").exists()


def test_wrong_settings_are_a_problem_with_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that runs the check before a roll-out stops at 1, and the person reads every complaint."""
    settings = tmp_path / "tidewatch.toml"
    settings.write_text('[kafka]\ngroup = ""\ncolour = "red"\n')
    assert main(["check", "--settings", str(settings)]) == 1
    text = capsys.readouterr().out
    assert "kafka.colour: unknown key" in text
    assert "kafka.group" in text
    assert text.splitlines()[-1].startswith("1 problem")


def test_row_of_an_unknown_profile_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error is answered with what could have been meant."""
    assert main(["check", "--row", "senor"]) == 2
    assert "sensor, network" in capsys.readouterr().err


def test_row_table_accounts_for_every_number() -> None:
    """The printed slices are the layout: their widths add up to the rows, without gaps."""
    profile = make_profile()
    layout = layout_of(profile)
    lines = describe_row("sensor", profile).splitlines()
    for where, width in (("feature", layout.feature_width), ("entity", layout.entity_width)):
        cells = [line.split() for line in lines if line.startswith(f"{where} ")]
        assert sum(int(cell[3]) for cell in cells) == width
        assert all(int(b[2]) == int(a[2]) + int(a[3]) for a, b in pairwise(cells))
        assert all(int(cell[4]) == 4 * int(cell[3]) for cell in cells)


def test_row_table_compares_full_and_light() -> None:
    """Whoever pays for memory sees both prices at once, and which one is theirs."""
    full, light = (
        next(line for line in describe_row("sensor", make_profile()).splitlines() if line.startswith(name))
        for name in ("full (this profile)", "light ")
    )
    assert "GB" in full
    assert "MB" in light
    coupled = make_profile(features=["a", "b"], evidence="coupled")
    assert 'a light row has no "coupled" evidence' in describe_row("pair", coupled)


@pytest.mark.integration
@pytest.mark.parametrize("changed", [{}, {"light": True}, {"features": [f"f{i}" for i in range(8)]}])
def test_estimated_memory_is_what_redis_uses(redis_url: str, changed: dict[str, object]) -> None:
    """The price named before anything is bought is not too low, and too high by no more than an allocator's rounding.

    The estimate is for jemalloc, whose classes are up to a quarter apart; a Redis built with another allocator may use
    less. Hash tables grow by doubling, which moves it by a few bytes a stream either way.
    """
    layout = layout_of(make_profile(**changed))
    streams, key = 3000, f"test:{uuid.uuid4().hex}"
    values = encode_many(layout.id, "0" * 12, np.zeros(streams, HEADER), np.ones((streams, layout.numbers), np.float32))
    assert len(values[0]) == cost_of(layout).value_bytes
    client = redis.Redis.from_url(redis_url)
    try:
        client.hset(key, mapping={f"{i:0{STREAM_ID_BYTES}}": value for i, value in enumerate(values)})
        used = client.memory_usage(key, samples=0)
    finally:
        client.delete(key)
        client.close()
    assert used is not None
    assert 0.97 * used / streams < cost_of(layout).redis_bytes < 1.25 * used / streams


def test_versions_of_shipped_profiles_fit(tmp_path: Path) -> None:
    """Before the first worker ran there is no version, and it is known that one can be made."""
    findings = list(check_versions(make_settings(tmp_path)))
    assert [finding.level for finding in findings] == [Level.OK, Level.OK]
    assert not (tmp_path / "registry").exists()


def test_a_served_version_with_other_settings_is_a_warning(tmp_path: Path) -> None:
    """Changing the alarm budget is a version change (design.md idea 1): it is said before it happens."""
    before = make_settings(tmp_path, profiles={"sensor": make_profile(alarm_budget="1 per day")})
    profile = before.profiles["sensor"]
    registry = Registry(before.registry.folder)
    registry.ensure("sensor", "gru", profile.fold())
    assert [finding.level for finding in check_versions(before)] == [Level.OK]
    after = make_settings(tmp_path, profiles={"sensor": make_profile()})
    (finding,) = check_versions(after)
    assert finding.level is Level.WARNING
    assert "alarm_every_s" in finding.text


def test_damaged_and_unfitting_weights_are_problems(tmp_path: Path) -> None:
    """What would stop a worker at its start is found here, profile by profile."""
    damaged, wide = tmp_path / "damaged", tmp_path / "wide"
    Weights.random(PredictorConfig(hidden=8)).save(damaged)
    (damaged / WEIGHTS_FILE).write_bytes(b"short")
    Weights.random(PredictorConfig(hidden=8, scope="stream", features=3)).save(wide)
    profiles = {
        "broken": make_profile(topics=["a"], predictor=str(damaged)),
        "narrow": make_profile(topics=["b"], predictor=str(wide)),
        "good": make_profile(topics=["c"]),
    }
    broken, narrow, good = check_versions(make_settings(tmp_path, profiles=profiles))
    assert (broken.level, narrow.level, good.level) == (Level.PROBLEM, Level.PROBLEM, Level.OK)
    assert "damaged" in broken.text
    assert "3 features" in narrow.text


def test_servers_that_do_not_answer_are_problems(tmp_path: Path) -> None:
    """A wrong address is the commonest mistake; the finding names the address."""
    place = f"127.0.0.1:{free_port()}"
    settings = make_settings(
        tmp_path,
        kafka=Kafka(bootstrap_servers=(place,), call_deadline_s=1.0),
        redis=Redis.model_validate({"url": f"redis://user:secret@{place}/0", "call_deadline_s": 1.0}),
    )
    (kafka,), (store,) = check_kafka(settings, {}), check_redis(settings, {})
    assert (kafka.level, store.level) == (Level.PROBLEM, Level.PROBLEM)
    assert place in kafka.text
    assert place in store.text
    assert "secret" not in store.text


@pytest.mark.integration
def test_missing_topics_are_problems_until_they_exist(tmp_path: Path, kafka_bootstrap: str) -> None:
    """Each topic that is not there is named, the check creates none of them, and then they are found."""
    own = uuid.uuid4().hex[:8]
    names = {key: f"{own}-{key}" for key in ("scores", "alerts", "dead", "input")}
    settings = make_settings(
        tmp_path,
        kafka=Kafka.model_validate(
            {
                "bootstrap_servers": kafka_bootstrap,
                "scores_topic": names["scores"],
                "alerts_topic": names["alerts"],
                "dead_letter_topic": names["dead"],
            }
        ),
        profiles={"sensor": make_profile(topics=[names["input"]])},
    )
    for _ in range(2):
        missing = [finding for finding in check_kafka(settings, {}) if finding.level is Level.PROBLEM]
        assert sorted(names.values()) == sorted(next(n for n in names.values() if n in f.text) for f in missing)
    create_topics(kafka_bootstrap, {names["input"]: 3, names["scores"]: 1, names["alerts"]: 1, names["dead"]: 1})
    findings = list(check_kafka(settings, {}))
    assert {finding.level for finding in findings} == {Level.OK}
    assert any(f"input {names['input']} (profile sensor): 3 partitions" in finding.text for finding in findings)


@pytest.mark.integration
def test_a_compacted_input_is_a_warning(tmp_path: Path, kafka_bootstrap: str) -> None:
    """Rows are rebuilt from the records; a topic that thins them out cannot give them back."""
    topic = f"{uuid.uuid4().hex[:8]}-input"
    create_topics(kafka_bootstrap, {topic: 1}, {"cleanup.policy": "compact"})
    settings = make_settings(
        tmp_path,
        kafka=Kafka.model_validate({"bootstrap_servers": kafka_bootstrap}),
        profiles={"sensor": make_profile(topics=[topic])},
    )
    assert any(f.level is Level.WARNING and "compacted" in f.text for f in check_kafka(settings, {}))


@pytest.mark.integration
def test_a_redis_that_keeps_everything_is_fine(tmp_path: Path, redis_url: str) -> None:
    """Version, policy and room are reported for the server the settings name."""
    settings = make_settings(tmp_path, redis=Redis.model_validate({"url": redis_url}))
    findings = list(check_redis(settings, {"sensor": 2000}))
    assert {finding.level for finding in findings} == {Level.OK}
    assert any("noeviction" in finding.text for finding in findings)
