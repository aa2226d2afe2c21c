"""`tidewatch check`: what it finds, on real servers and without."""

from __future__ import annotations

import uuid
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import redis

from models.config import PredictorConfig
from models.pretrained import WEIGHTS_FILE, Weights
from models.step import Scorer
from pipeline.__main__ import main
from pipeline.check_command import streams_of
from pipeline.checks.finding import Facts, Finding, Level, problem, warning
from pipeline.checks.histories import check_histories
from pipeline.checks.kafka import check_kafka
from pipeline.checks.need import Lack, Need, check_needs, need_of, table_slots
from pipeline.checks.redis import check_redis
from pipeline.checks.row import STREAM_ID_BYTES, cost_of, describe_row, layout_of
from pipeline.checks.versions import check_versions
from pipeline.connections import Kafka, Redis
from pipeline.errors import ConfigurationError, VersionError
from pipeline.partition import to_offset
from pipeline.profile import Profile
from pipeline.records import Committed, Partition
from pipeline.registry import Registry, base_weights
from pipeline.resident import ResidentRows
from pipeline.servers import create_topics, free_port
from pipeline.settings import EngineSettings, RegistrySettings, Settings
from pipeline.sources.base import CommittedOffset
from pipeline.state.base import HEADER
from pipeline.state.codec import encode_many

DAY_MS = 86_400_000


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


def test_a_budget_that_ordinary_observations_use_up_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default one alarm is allowed a week: of daily values, every seventh."""
    settings = tmp_path / "tidewatch.toml"
    daily = '[profiles.shop]\ntopics = ["sales"]\nfeatures = ["value"]\ninterval_s = 86400\nidle_reset_s = 2e6\n'
    for budget, said in ((None, 1), ("1 per year", 0)):
        settings.write_text(daily + (f'alarm_budget = "{budget}"\n' if budget else ""))
        assert main(["check", "--offline", "--settings", str(settings)]) == 0
        text = capsys.readouterr().out
        assert text.count('alarm_budget "1 per week" allows an alarm for every 7 observations') == said


def test_wrong_settings_are_a_problem_with_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that runs the check before a roll-out stops at 1, and the person reads every complaint."""
    settings = tmp_path / "tidewatch.toml"
    settings.write_text('[kafka]\ngroup = ""\ncolour = "red"\n')
    assert main(["check", "--settings", str(settings)]) == 1
    text = capsys.readouterr().out
    assert "kafka.colour: unknown key" in text
    assert "kafka.group" in text
    assert text.splitlines()[-1] == "not ready (everything else not checked): 1 problem."


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


def test_a_registry_that_cannot_be_written_is_said_before_a_worker_fails(tmp_path: Path) -> None:
    """A worker publishes first, and would end there; where the version is served already, nothing is written."""
    settings = make_settings(tmp_path)
    (tmp_path / "registry").write_text("a file in its place")
    [*versions, registry] = check_versions(settings)
    assert {finding.level for finding in versions} == {Level.OK}
    assert (registry.level, registry.subject) == (Level.PROBLEM, "registry")
    assert "registry is no folder, and workers publish new versions in" in registry.text
    with pytest.raises(VersionError, match="cannot publish version"):
        Registry(settings.registry.folder).ensure("sensor", "gru", settings.profiles["sensor"].fold())


def test_a_served_version_with_other_settings_is_a_warning(tmp_path: Path) -> None:
    """Changing the alarm budget is a version change, as the budget enters the fold: it is said before it happens."""
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
    (kafka,), (store,) = check_kafka(settings, {}, Facts()), check_redis(settings, {}, Facts())
    assert (kafka.level, store.level) == (Level.PROBLEM, Level.PROBLEM)
    assert place in kafka.text
    assert place in store.text
    assert "secret" not in store.text


class Topics:
    """Topics of one test, and settings that name them: one profile of one feature a minute."""

    def __init__(self, tmp_path: Path, bootstrap: str, **profile: object) -> None:
        own = uuid.uuid4().hex[:8]
        self.names = {key: f"{own}-{key}" for key in ("scores", "alerts", "dead", "input")}
        self.bootstrap = bootstrap
        self.settings = make_settings(
            tmp_path,
            kafka=Kafka.model_validate(
                {
                    "bootstrap_servers": bootstrap,
                    "group": own,
                    "scores_topic": self.names["scores"],
                    "alerts_topic": self.names["alerts"],
                    "dead_letter_topic": self.names["dead"],
                }
            ),
            profiles={"sensor": make_profile(topics=[self.names["input"]], **profile)},
        )

    def create(self, inputs: int = 1, alerts: dict[str, str] | None = None, **configs: object) -> None:
        """Make them all; ``configs`` are the input's, with _ for the dots."""
        mine = {key.replace("_", "."): str(value) for key, value in configs.items()}
        create_topics(self.bootstrap, {self.names["input"]: inputs}, mine)
        create_topics(self.bootstrap, {self.names["alerts"]: 1}, alerts or {})
        create_topics(self.bootstrap, {self.names["scores"]: 1, self.names["dead"]: 1})

    def check(self, facts: Facts | None = None) -> list[Finding]:
        """What is found."""
        return list(check_kafka(self.settings, {}, facts or Facts()))

    def about(self, word: str) -> list[Finding]:
        """Findings that speak of something."""
        return [finding for finding in self.check() if word in finding.text]


@pytest.mark.integration
def test_missing_topics_are_problems_until_they_exist(tmp_path: Path, kafka_bootstrap: str) -> None:
    """Each topic that is not there is named, the check creates none of them, and then they are found."""
    topics = Topics(tmp_path, kafka_bootstrap)
    names = topics.names
    for _ in range(2):
        missing = [finding for finding in topics.check() if finding.level is Level.PROBLEM]
        assert sorted(names.values()) == sorted(next(n for n in names.values() if n in f.text) for f in missing)
    topics.create(inputs=3, retention_ms=-1)
    facts = Facts()
    findings = topics.check(facts)
    assert {finding.level for finding in findings} == {Level.OK}
    assert any(f"input {names['input']} (profile sensor): 3 partitions" in finding.text for finding in findings)
    assert facts.partitions == {"sensor": 3}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("configs", "level", "said"),
    [
        ({"retention_ms": -1}, Level.OK, "for ever"),
        ({"retention_ms": 8 * DAY_MS}, Level.OK, "8 days"),
        ({"retention_ms": 6 * DAY_MS}, Level.WARNING, "6 days"),
        ({"retention_ms": 3_600_000}, Level.PROBLEM, "1 hour"),
        ({"retention_ms": -1, "retention_bytes": 10_000_000}, Level.WARNING, "cut by size"),
        ({"cleanup_policy": "compact"}, Level.WARNING, "compacted"),
    ],
)
def test_inputs_must_be_kept_for_as_long_as_a_rebuild_needs(
    tmp_path: Path, kafka_bootstrap: str, configs: dict[str, object], level: Level, said: str
) -> None:
    """Kafka is the truth that rows come from: what it no longer has cannot be folded again.

    A stream of the profile may rest for 7 days and go on (idle_reset_s), and needs 100 minutes to warm up.
    """
    topics = Topics(tmp_path, kafka_bootstrap)
    topics.create(**configs)
    findings = topics.about(topics.names["input"])
    assert {finding.level for finding in findings} - {Level.OK} == {level} - {Level.OK}
    assert any(finding.level is level and said in finding.text for finding in findings)


@pytest.mark.integration
def test_alerts_that_go_before_they_are_looked_at_are_a_warning(tmp_path: Path, kafka_bootstrap: str) -> None:
    """Monitor and notifier know open alerts from the topic only."""
    topics = Topics(tmp_path, kafka_bootstrap)
    topics.create(alerts={"retention.ms": str(DAY_MS)}, retention_ms=-1)
    (finding,) = topics.about("alerts are kept")
    assert finding.level is Level.WARNING
    assert "1 day:" in finding.text


def test_versions_that_a_replay_needs_must_be_there(tmp_path: Path) -> None:
    """Records below the committed offset are scored again by the version that scored them first (rule 11)."""
    settings = make_settings(tmp_path, profiles={"sensor": make_profile()})
    registry = Registry(settings.registry.folder)
    version = registry.ensure("sensor", "gru", settings.profiles["sensor"].fold())
    place = Partition("t", 0)

    def found(history: tuple[tuple[int, str], ...], text: str | None = None) -> list[Finding]:
        offset = to_offset(Committed(9, "1" * 32, 0, history, None))
        return list(check_histories(settings, Committing({place: replace(offset, metadata=text or offset.metadata)})))

    assert [f.level for f in check_histories(settings, Committing({}))] == []
    assert [f.level for f in found(((0, version),))] == [Level.OK]
    (gone,) = found(((0, "0123456789ab"), (5, version)))
    assert gone.level is Level.PROBLEM
    assert "0123456789ab" in gone.text
    (foreign,) = found((), text="somebody else's")
    assert foreign.level is Level.WARNING
    (settings.registry.folder / "sensor" / "versions" / version / WEIGHTS_FILE).write_bytes(b"short")
    (damaged,) = found(((0, version),))
    assert damaged.level is Level.WARNING
    assert version in damaged.text


def test_a_renamed_profile_keeps_the_version_that_its_streams_were_scored_with(tmp_path: Path) -> None:
    """The first worker under the new name publishes the same one: names are made of weights and settings."""
    before = make_settings(tmp_path, profiles={"sensor": make_profile()})
    version = Registry(before.registry.folder).ensure("sensor", "gru", before.profiles["sensor"].fold())
    renamed = make_settings(tmp_path, profiles={"probe": make_profile()})
    offset = to_offset(Committed(9, "1" * 32, 0, ((0, version),), None))
    (finding,) = check_histories(renamed, Committing({Partition("t", 0): offset}))
    assert finding.level is Level.WARNING, "an empty registry of the wrong path looks the same"
    assert "the first worker publishes it" in finding.text


class Committing:
    """A cluster that knows what a group committed."""

    def __init__(self, offsets: dict[Partition, CommittedOffset]) -> None:
        self._offsets = offsets

    def committed(self, group: str) -> dict[Partition, CommittedOffset]:
        """What it was given."""
        return self._offsets


# --- what streams need ------------------------------------------------------------------------------------------------


def make_need(**changed: object) -> Need:
    """A thousand streams that keep half a worker busy."""
    return replace(Need("sensor", 1000, 2_000_000, 5_000_000, 2000.0, 0.5, 0.5), **changed)  # type: ignore[arg-type]


def levels(need: Need, facts: Facts, lack: Lack = problem) -> set[Level]:
    """Of all findings about it."""
    return {finding.level for finding in check_needs([need], facts, lack)}


def test_what_is_needed_and_not_there_is_a_problem() -> None:
    """Found out before anything starts: Redis that would refuse writes, workers that could not share the work."""
    plenty = Facts({"sensor": 12}, 1_000_000_000)
    assert levels(make_need(), plenty) == {Level.OK}
    assert levels(make_need(redis_bytes=2_000_000_000), plenty) == {Level.OK, Level.PROBLEM}
    assert levels(make_need(load=12.5), plenty) == {Level.OK, Level.PROBLEM}
    assert levels(make_need(worker_bytes=10**15), plenty) == {Level.OK, Level.PROBLEM}
    assert levels(make_need(load=None), plenty) == {Level.OK}
    assert levels(make_need(redis_bytes=2_000_000_000), plenty, warning) == {Level.OK, Level.WARNING}
    assert levels(make_need(redis_bytes=2_000_000_000, load=12.5), Facts()) == {Level.OK}


def test_estimates_are_of_this_machine_and_grow_with_the_streams(tmp_path: Path) -> None:
    """Twice the streams take twice the memory in Redis and come half as often; a worker holds no more than it may."""
    settings = make_settings(tmp_path, engine=EngineSettings(max_resident_streams=2000))
    one, two = (need_of("sensor", make_profile(), streams, settings, "cpu", 1) for streams in (20_000, 40_000))
    assert two.redis_bytes == 2 * one.redis_bytes
    assert two.worker_bytes == one.worker_bytes
    assert one.rate > 1000
    assert one.load is not None
    assert one.load == pytest.approx(20_000 / one.rate / 60)


@pytest.mark.parametrize(("streams", "most"), [(1, 10), (1024, 5000), (1025, 5000), (4999, 5000)])
def test_estimated_table_is_the_one_that_is_allocated(streams: int, most: int) -> None:
    """Memory of a worker is its tables, which grow by doubling."""
    scorer = Scorer(base_weights("gru32"), make_profile(light=True).fold(), "cpu")
    table = ResidentRows(scorer, "v", most, "cpu")
    assert table.make_room(streams)
    assert table.rows.capacity == table_slots(streams, most)


def test_streams_are_named_together_or_by_profile(tmp_path: Path) -> None:
    """One number for all is quick; profiles differ."""
    settings = make_settings(tmp_path)
    assert streams_of("7", settings) == {"sensor": 7, "network": 7}
    assert streams_of("sensor=5,network=6", settings) == {"sensor": 5, "network": 6}
    assert streams_of(None, settings) == dict.fromkeys(("sensor", "network"), settings.engine.max_resident_streams)
    for wrong in ("many", "0", "sensor=", "senor=5", "sensor=5,,", "-3"):
        with pytest.raises(ConfigurationError, match="--streams"):
            streams_of(wrong, settings)


def test_too_many_named_streams_end_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script asks for so many streams, and hears that this machine is too small for them."""
    settings = tmp_path / "tidewatch.toml"
    settings.write_text(
        f'[registry]\nfolder = "{tmp_path / "registry"}"\n[engine]\nmax_resident_streams = 1000000000\n'
        '[profiles.p]\ntopics = ["t"]\nfeatures = ["v"]\n'
    )
    words = ["check", "--offline", "--settings", str(settings)]
    assert main([*words, "--streams", "1000000000"]) == 1
    assert "not ready (connections not checked): 1 problem." in capsys.readouterr().out
    assert main(words) == 0
    assert "ready, 1 warning (connections not checked)" in capsys.readouterr().out


@pytest.mark.integration
def test_a_redis_that_keeps_everything_is_fine(tmp_path: Path, redis_url: str) -> None:
    """Version, policy and room are reported for the server the settings name."""
    settings = make_settings(tmp_path, redis=Redis.model_validate({"url": redis_url}))
    findings = list(check_redis(settings, {"sensor": 2000}, Facts()))
    assert {finding.level for finding in findings} == {Level.OK}
    assert any("noeviction" in finding.text for finding in findings)
