"""Where settings come from, what is refused, and that the message says where and why."""

import os
import tomllib
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.profile import Profile, alarm_every_s
from pipeline.settings import Settings
from pipeline.settings_given import SECRETS

WriteToml = Callable[[str], Path]
WEEK_S = 604_800.0
PROFILE = {"topics": ["t"], "features": ["a", "b"]}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees only the variables it sets."""
    for name in list(os.environ):
        if name.startswith("TIDEWATCH_") or name in ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL"):
            monkeypatch.delenv(name)


@pytest.fixture
def toml(tmp_path: Path) -> WriteToml:
    def write(text: str) -> Path:
        path = tmp_path / "worker.toml"
        path.write_text(text)
        return path

    return write


def test_defaults_run_on_a_laptop_with_the_two_shipped_profiles() -> None:
    """Nothing to configure before the first alert."""
    settings = Settings.load()
    assert settings.kafka.bootstrap_servers == ("localhost:9092",)
    assert settings.redis.url.get_secret_value() == "redis://localhost:6379/0"
    assert settings.profile_names() == {"sensor-windows": "sensor", "network-windows": "network"}
    assert settings == Settings()
    network = settings.profiles["network"].fold()
    assert (len(network.features), network.evidence, network.interval_s) == (9, "jump", 60.0)
    assert settings.profiles["sensor"].fold().alarm_every_s == WEEK_S


def test_strongest_source_wins(toml: WriteToml, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overrides beat TIDEWATCH_ variables beat plain variables beat the file beats defaults, key by key."""
    path = toml(
        '[kafka]\nbootstrap_servers = ["file:1"]\ngroup = "file"\nstart = "latest"\n'
        '[redis]\nurl = "redis://file/0"\n[http]\nport = 1\n'
    )
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "plain:1,plain:2")
    monkeypatch.setenv("REDIS_URL", "redis://plain/0")
    monkeypatch.setenv("TIDEWATCH_REDIS__URL", "redis://variable/0")
    monkeypatch.setenv("TIDEWATCH_HTTP__PORT", "2")
    settings = Settings.load(path, {"http": {"port": 3}})
    assert settings.kafka.bootstrap_servers == ("plain:1", "plain:2")
    assert settings.redis.url.get_secret_value() == "redis://variable/0"
    assert settings.http.port == 3
    assert (settings.kafka.group, settings.kafka.start, settings.http.host) == ("file", "latest", "127.0.0.1")


def test_file_may_be_named_by_the_environment(toml: WriteToml, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container gets its file by mounting it and one variable."""
    monkeypatch.setenv("TIDEWATCH_CONFIG", str(toml("[http]\nport = 0\n")))
    assert Settings.load().http.port == 0


@pytest.mark.parametrize("name", ["TIDEWATCH_CACHE", "TIDEWATCH_IMAGE"])
def test_variables_of_the_jars_and_of_compose_are_no_unknown_settings(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """pipeline/jars.py and docker-compose.yml read these; a command in the same shell must not refuse to start."""
    monkeypatch.setenv(name, "tidewatch:0.1.0-cuda")
    assert Settings.load() == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIDEWATCH_SERVICE_HOST", "10.0.0.1"),
        ("TIDEWATCH_SERVICE_PORT", "9464"),
        ("TIDEWATCH_SERVICE_PORT_HTTP_METRICS", "9464"),
        ("TIDEWATCH_PORT", "tcp://10.0.0.1:9464"),
        ("TIDEWATCH_PORT_9464_TCP", "tcp://10.0.0.1:9464"),
        ("TIDEWATCH_PORT_9464_TCP_PROTO", "tcp"),
        ("TIDEWATCH_PORT_9464_TCP_PORT", "9464"),
        ("TIDEWATCH_PORT_9464_TCP_ADDR", "10.0.0.1"),
        ("TIDEWATCH_WORKER_SERVICE_HOST", "10.0.0.1"),
        ("TIDEWATCH_HTTP_PORT", "tcp://10.0.0.1:80"),
        ("TIDEWATCH_WORKER_2_PORT_53_UDP", "udp://10.0.0.1:53"),
    ],
)
def test_variables_that_kubernetes_makes_for_services_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A Service named tidewatch or tidewatch-... puts them into every pod of its namespace."""
    monkeypatch.setenv(name, value)
    assert Settings.load() == Settings()


def test_profile_named_like_a_shipped_one_overrides_only_the_keys_given(toml: WriteToml) -> None:
    """Changing the alarm budget must not mean copying nine feature names."""
    settings = Settings.load(toml('[profiles.network]\nalarm_budget = "1 per day"\n'))
    assert set(settings.profiles) == {"network"}
    network = settings.profiles["network"]
    assert network.fold().alarm_every_s == 86_400
    assert (len(network.features), network.topics, network.evidence) == (9, ("network-windows",), "jump")


def test_profiles_of_a_file_replace_the_shipped_ones(toml: WriteToml) -> None:
    """A worker subscribes to what its file names and to nothing else."""
    settings = Settings.load(toml('[profiles.plant]\ntopics = ["plant"]\nfeatures = ["flow"]\n'))
    assert settings.profile_names() == {"plant": "plant"}


def test_environment_reaches_into_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """One topic more for a shipped profile is one variable; lists and tables have a form there."""
    monkeypatch.setenv("TIDEWATCH_PROFILES__SENSOR__TOPICS", "one, two")
    monkeypatch.setenv("TIDEWATCH_PROFILES__SENSOR__GROUPS", '{"press-*": "presses"}')
    sensor = Settings.load().profiles["sensor"]
    assert sensor.topics == ("one", "two")
    assert sensor.group_of("press-07") == "presses"
    assert sensor.features == ("value",)


def test_a_plan_of_a_topic_keeps_the_numbers_that_are_not_given(
    toml: WriteToml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of ``tidewatch topics --help`` names partitions only; each purpose has an age of its own."""
    monkeypatch.setenv("TIDEWATCH_TOPICS__INPUTS__PARTITIONS", "48")
    topics = Settings.load(toml("[topics]\nscores = { retention_h = 2 }\nalerts = { partitions = 2 }\n")).topics
    assert (topics.inputs.partitions, topics.inputs.retention_h) == (48, 192.0)
    assert (topics.scores.partitions, topics.scores.retention_h) == (4, 2.0)
    assert (topics.alerts.partitions, topics.alerts.retention_h) == (2, 720.0)
    assert topics.dead_letters == Settings().topics.dead_letters


def test_a_check_can_be_turned_off_and_a_topic_kept_for_ever(toml: WriteToml, monkeypatch: pytest.MonkeyPatch) -> None:
    """TOML has no word for "none", and a variable cannot hold it either."""
    monkeypatch.setenv("TIDEWATCH_LIMITS__MAX_CLOCK_SKEW_S", "off")
    text = "[limits]\nmax_event_age_s = 'off'\n[topics]\nalerts = { retention_h = 'forever' }\n"
    settings = Settings.load(toml(text))
    assert (settings.limits.max_clock_skew_s, settings.limits.max_event_age_s) == (None, None)
    assert settings.topics.alerts.retention_h is None


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("[kafka]\nboostrap_servers = []\n", ["kafka.boostrap_servers: unknown key"]),
        ("[kafak]\n", ["kafak: unknown key"]),
        ("[kafka]\nbootstrap_servers = ['localhost']\n", ["kafka.bootstrap_servers: 'localhost' is not host:port"]),
        ("[http]\nport = 70000\n[limits]\nmax_features = 0\n", ["http.port:", "(got 70000)", "limits.max_features:"]),
        ("[kafka]\ntransaction_timeout_s = 8.0\n", ["kafka: transaction_timeout_s must be more than"]),
        ("[kafka]\nstatic_membership = true\n", ["kafka: static_membership needs a worker_name"]),
        ("[kafka]\nalerts_topic = 'x'\nscores_topic = 'x'\n", ["kafka: scores_topic, alerts_topic"]),
        ("[kafka]\nalerts_topic = 'my topic'\n", ["kafka.alerts_topic: 'my topic' is no Kafka topic name"]),
        ("[kafka.security]\nprotocol = 'SASL_SSL'\n", ["kafka.security: protocol SASL_SSL needs mechanism, username"]),
        ("[kafka.security]\nusername = 'me'\n", ["kafka.security: mechanism, username and password need a SASL"]),
        ("[kafka.security]\nca_file = 'ca.pem'\n", ["kafka.security: ca_file and cert_file need SSL"]),
        ("[redis]\nurl = 'localhost'\n", ["redis.url: must start with redis://"]),
        ("[redis]\nsave_interval_s = 90\n", ["redis: save_interval_s must be less"]),
        ("[engine]\nmax_batch_observations = 10\n", ["engine.max_batch_observations must hold one window"]),
        ("[topics]\ninputs = 3\n", ["topics.inputs: Input should be"]),
        ("[topics]\nreplication = { partitions = 2 }\n", ["topics.replication: Input should be"]),
        ("[topics]\ninputs = { partition = 2 }\n", ["topics.inputs.partition: unknown key"]),
        ("[profiles]\n", ["profiles:"]),
        ("[profiles.a]\nfeatures = ['x']\n", ["profiles.a.topics: Field required"]),
        ("[profiles.sensor]\nalarm_budget = 'often'\n", ['profiles.sensor.alarm_budget: write it as "1 per week"']),
        ("[profiles.sensor]\nevidence = 'coupled'\n", ['profiles.sensor: evidence "coupled" is for 2 to 16']),
        (
            "[profiles.sensor]\ninterval_s = 86400.0\nidle_reset_s = 90000.0\n",
            ["profiles.sensor: idle_reset_s must be"],
        ),
        ("[profiles.sensor]\nlight = true\npredictor = 'lstm'\n", ["profiles.sensor: no light LSTM ships"]),
        ("[profiles.sensor]\nfeatures = ['x', 'x']\n", ["profiles.sensor.features: named twice: x"]),
        ("[profiles.sensor]\n[profiles.network]\ntopics = ['sensor-windows']\n", ["'sensor-windows' is bound to the"]),
        ("[profiles.sensor]\ntopics = ['tidewatch-alerts']\n", ["is an output topic"]),
        ("[limits]\nmax_features = 5\n", ["profile 'network' has 9 features"]),
        ("kafka = 3\n", ["kafka: Input should be"]),
        ("[kafka\n", ["not TOML"]),
    ],
)
def test_wrong_settings_are_refused_with_place_and_reason(toml: WriteToml, text: str, complaints: list[str]) -> None:
    """An operator must find the line to change from the message alone."""
    path = toml(text)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(path)
    assert str(path) in str(caught.value)
    for complaint in complaints:
        assert complaint in str(caught.value)


def test_what_a_variable_sets_is_not_blamed_on_the_file(toml: WriteToml, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for a key in a file that does not have it looks for long."""
    monkeypatch.setenv("TIDEWATCH_KAFKA__GRUOP", "x")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "nowhere")
    with pytest.raises(ConfigurationError) as refused:
        Settings.load(toml("[http]\nport = 70000\n"))
    text = str(refused.value)
    assert "kafka.gruop: unknown key (set by TIDEWATCH_KAFKA__GRUOP)" in text
    assert "kafka.bootstrap_servers: 'nowhere' is not host:port (set by KAFKA_BOOTSTRAP_SERVERS)" in text
    assert "http.port: " in text


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A wrong mount should say which path was looked for."""
    with pytest.raises(ConfigurationError, match=r"absent\.toml: cannot be read"):
        Settings.load(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("TIDEWATCH_KAFAK__GROUP", "x", "TIDEWATCH_KAFAK__GROUP"),
        ("TIDEWATCH_KAFKA_GROUP", "x", "TIDEWATCH_KAFKA_GROUP"),
        ("TIDEWATCH_KAFKA__GRUOP", "x", "kafka.gruop: unknown key"),
        ("TIDEWATCH_HTTP_PORT", "9465", "TIDEWATCH_HTTP_PORT set no setting"),
        ("TIDEWATCH_WORKER__SERVICE_HOST", "10.0.0.1", "TIDEWATCH_WORKER__SERVICE_HOST set no setting"),
        ("TIDEWATCH_SERVICE_PORT__HTTP", "9464", "TIDEWATCH_SERVICE_PORT__HTTP set no setting"),
        ("TIDEWATCH_HTTP__SERVICE_HOST", "10.0.0.1", "http.service_host: unknown key"),
        ("TIDEWATCH_SERVICE_HOSTS", "10.0.0.1", "TIDEWATCH_SERVICE_HOSTS set no setting"),
        ("TIDEWATCH_PORT_X_TCP", "tcp://10.0.0.1:9464", "TIDEWATCH_PORT_X_TCP set no setting"),
        ("TIDEWATCH_HTTP__PORT", "many", "http.port"),
        ("TIDEWATCH_PROFILES__SENSOR__GROUPS", '{"a', "profiles.sensor.groups"),
    ],
)
def test_wrong_variables_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str) -> None:
    """A misspelled variable that is silently ignored costs an afternoon."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=complaint.replace(".", r"\.")):
        Settings.load()


def test_secrets_are_not_shown(toml: WriteToml) -> None:
    """Settings are logged at start, and errors are pasted into tickets."""
    security = "[kafka.security]\nprotocol = 'SASL_SSL'\nmechanism = 'PLAIN'\nusername = 'me'\npassword = 'hush'\n"
    settings = Settings.load(toml(security + "[redis]\nurl = 'redis://:hush@localhost/0'\n"))
    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(toml("[redis]\nurl = ':hush@localhost'\n[kafka.security]\npassword = ['hush']\n"))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("place", SECRETS, ids=".".join)
def test_digits_of_a_secret_without_quotes_are_not_shown(toml: WriteToml, place: tuple[str, ...]) -> None:
    """A password of digits is a number to TOML; the message must say how to write it, not what it is."""
    *sections, key = place
    path = toml(f"[{'.'.join(sections)}]\n{key} = 123456789\n")
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(path)
    assert f"{'.'.join(place)}: Input should be a valid string; put it in quotes" in str(caught.value)
    assert "123456789" not in str(caught.value)
    assert "123456789" not in "".join(traceback.format_exception(caught.value)), "--debug shows the traceback"


def test_what_an_unknown_key_holds_is_not_shown(toml: WriteToml) -> None:
    """It may be a secret's key with a typing error."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(toml("[redis]\npasswrd = 123456789\n"))
    assert "redis.passwrd: unknown key" in str(caught.value)
    assert "123456789" not in str(caught.value)


def test_whitespace_around_what_notify_sends_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Kubernetes secret made with echo ends in a newline; a compose file's unset variable is empty."""
    monkeypatch.setenv("TIDEWATCH_NOTIFY__URL", " https://hooks.example/T000/hush\r\n")
    monkeypatch.setenv("TIDEWATCH_NOTIFY__TOKEN", "hush\n")
    notify = Settings.load().notify
    assert notify.url is not None
    assert notify.token is not None
    assert notify.url.get_secret_value() == "https://hooks.example/T000/hush"
    assert notify.token.get_secret_value() == "hush"
    monkeypatch.setenv("TIDEWATCH_NOTIFY__TOKEN", "\n")
    assert Settings.load().notify.token is None


@pytest.mark.parametrize(
    ("section", "key", "value", "reason"),
    [
        ("notify", "url", "https://hooks.example/hush x", "must be ASCII without spaces"),
        ("notify", "url", "https://hooks.example/hu\nsh", "must be ASCII without spaces"),
        ("notify", "url", "https://hooks.example/hush\x7f", "must be ASCII without spaces"),
        ("notify", "url", "https://hooks.example/hush\u00e9", "must be ASCII without spaces"),
        ("notify", "url", "https://user:hush/x", "host or port cannot be read"),
        ("notify", "url", "https:///hush", "names no host"),
        ("notify", "token", "hush hush", "must be ASCII without spaces"),
        ("notify", "token", "hush\x00", "must be ASCII without spaces"),
        ("notify", "token", "hush\u20ac", "must be ASCII without spaces"),
        ("redis", "url", "redis://:hush/x@localhost/0", "host or port cannot be read"),
    ],
)
def test_secrets_that_no_client_can_send_are_refused_unseen(section: str, key: str, value: str, reason: str) -> None:
    """The clients would refuse them later, in texts that repeat them."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(overrides={section: {key: value}})
    assert f"{section}.{key}: {reason}" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "hush" not in "".join(traceback.format_exception(caught.value)), "--debug shows the traceback"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1 per week", WEEK_S),
        ("2 per month", 15 * 86_400),
        ("1 per day", 86_400),
        ("0.5 per day", 2 * 86_400),
        ("1 per 3 days", 3 * 86_400),
        ("3 Per  Hour ", 1200),
        ("1 per year", 365 * 86_400),
    ],
)
def test_alarm_budget_means_seconds_between_false_alarms(text: str, seconds: float) -> None:
    """The one knob a user turns must be read as it is spoken."""
    assert alarm_every_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "1 a week", "0 per week", "1 per 0 days", "-1 per week", "1 per fortnight", "1 per"]
)
def test_unreadable_alarm_budget_is_refused(text: str) -> None:
    """A budget of none, or one misread, would silence a fleet."""
    with pytest.raises(ValueError, match=r"1 per week|no alarm"):
        alarm_every_s(text)


def test_evidence_follows_the_number_of_features_unless_chosen() -> None:
    """The recipe's defaults: single for one feature, jump for several."""
    assert Profile(topics=("t",), features=("a",)).fold().evidence == "single"
    assert Profile.model_validate(PROFILE).fold().evidence == "jump"
    assert Profile.model_validate(PROFILE | {"evidence": "coupled"}).fold().evidence == "coupled"


def test_builtin_weights_follow_predictor_and_row() -> None:
    """The light row needs the narrow network; a path is nobody's built-in."""
    assert Profile.model_validate(PROFILE).builtin() == "gru"
    assert Profile.model_validate(PROFILE | {"light": True}).builtin() == "gru32"
    assert Profile.model_validate(PROFILE | {"predictor": "lstm"}).builtin() == "lstm"
    assert Profile.model_validate(PROFILE | {"predictor": "versions/7"}).builtin() is None


def test_first_matching_group_counts() -> None:
    """Streams of one machine page one person."""
    profile = Profile.model_validate(PROFILE | {"groups": {"press-1*": "hall 1", "press-*": "presses"}})
    assert profile.group_of("press-12") == "hall 1"
    assert profile.group_of("press-2") == "presses"
    assert profile.group_of("pump") is None


def test_shipped_worker_file_says_the_defaults() -> None:
    """The commented file is where an operator reads what can be set; it must be complete and true."""
    path = Path(__file__).parents[2] / "deploy" / "config" / "worker.toml"
    assert Settings.load(path) == Settings()
    given = tomllib.loads(path.read_text())
    commented = path.read_text()
    for section, field in Settings.model_fields.items():
        if section == "profiles":
            continue
        for key in type(getattr(Settings(), section)).model_fields:
            assert key in given.get(section, {}) or f"# {key} =" in commented, f"[{section}] {key} ({field})"
