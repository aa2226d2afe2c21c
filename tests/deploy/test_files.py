"""The files of the deployment, checked without a container engine and without a server."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.generate import FOLDER, dashboards
from deploy.prometheus.describe import PAGE, page
from pipeline.__main__ import COMMANDS, build_parser
from pipeline.learning.metrics import LearnerMetrics
from pipeline.metrics import Metrics
from pipeline.monitor_metrics import MonitorMetrics
from pipeline.notify.metrics import NotifyMetrics
from pipeline.settings import Settings
from tests.deploy.compose import FILE, ROOT, VARIABLE, in_order, load

BIN = Path(sys.executable).parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
COMPOSE = load({})
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, it in SERVICES.items() if "build" in it]
ONE_SHOT = {"topics", "replay"}
NAME = re.compile(r"\banomaly_\w+")


def run(*words: object) -> None:
    """Run a program that says nothing where it finds nothing wrong."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- docker-compose.yml -----------------------------------------------------------------------------------------------


def test_compose_file_follows_the_schema() -> None:
    """A key that Compose does not know stops everything."""
    extra = [ROOT / "deploy" / name for name in ("gpu.yml", "secured.yml")]
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE, *extra)


@pytest.mark.parametrize("name", OURS)
def test_every_command_of_ours_is_one_that_parses(name: str) -> None:
    """A container whose command line is wrong restarts for ever."""
    command, *words = map(str, SERVICES[name]["command"])
    module = import_module(COMMANDS[command].module_name(command))
    assert build_parser(command, module).parse_args([command, *words]).command == command


@pytest.mark.parametrize("name", OURS)
def test_environment_of_ours_is_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that sets nothing is refused at the start, and one that is misspelt otherwise would be."""
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, "" if value is None else str(value))
    monkeypatch.setenv("TIDEWATCH_CONFIG", str(ROOT / "deploy" / "config" / "worker.toml"))
    settings = Settings.load()
    assert settings.http.host == "0.0.0.0"  # inside a container: nobody else could scrape it
    assert settings.kafka.bootstrap_servers == ("kafka:9092",)
    assert str(settings.registry.folder) == "/var/lib/tidewatch/registry"


def test_secrets_reach_every_container_of_ours_by_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forgotten for one role is found out on the first secured cluster."""
    secured = load({"REDIS_URL": "rediss://redis:6380/0"}, ROOT / "deploy" / "secured.yml")
    assert secured["services"].keys() == set(OURS)
    (only,) = {json.dumps(it, sort_keys=True) for it in secured["services"].values()}
    service = json.loads(only)
    assert set(service["secrets"]) == set(secured["secrets"])
    for name in service["secrets"]:
        (tmp_path / name).write_text("s3cret\n")
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value.replace("/run/secrets", str(tmp_path)))
    monkeypatch.setenv("REDIS_URL", "rediss://redis:6380/0")
    settings = Settings.load()
    assert settings.kafka.security.password is not None
    assert settings.kafka.security.password.get_secret_value() == "s3cret"
    assert "s3cret" in settings.redis.address().get_secret_value()
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize("name", SERVICES)
def test_every_mounted_file_exists_and_every_volume_is_named(name: str) -> None:
    """Docker makes an empty folder of a file that is not there, and says nothing."""
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], mount


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_limited_and_watched(name: str) -> None:
    """An image that changes by itself, or a container that takes the whole machine, is found out at night."""
    service = SERVICES[name]
    tag = service["image"].rpartition(":")[2]
    assert re.search(r"\d+\.\d+\.\d+", tag), service["image"]
    limits = service["deploy"]["resources"]["limits"]
    assert limits["cpus"]
    assert limits["memory"]
    assert name in ONE_SHOT or service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == ("unless-stopped" if name not in ONE_SHOT else service["restart"])


@pytest.mark.parametrize("name", OURS)
def test_our_containers_can_do_little(name: str) -> None:
    """What cannot be written cannot be changed by whoever breaks in."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["user"] == "10001:10001"
    assert service["cap_drop"] == ["ALL"]
    assert service["build"]["dockerfile"] == "deploy/Dockerfile"


def test_ports_are_published_on_this_machine_only() -> None:
    """None of these servers asks who you are."""
    published = [port for it in SERVICES.values() for port in it.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_services_start_in_an_order() -> None:
    """Topics before the worker that needs them, and both servers before these."""
    order = in_order(SERVICES)
    assert order.index("kafka") < order.index("topics") < order.index("worker") < order.index("replay")
    assert order.index("redis") < order.index("worker")


def test_every_variable_has_a_default_that_works() -> None:
    """`docker compose up` without any preparation is what everyone tries first."""
    for variable, default in VARIABLE.findall(FILE.read_text()):
        assert default or variable == "NOTIFY_URL", variable


def test_a_worker_has_a_thread_for_each_core_it_may_use() -> None:
    """Processes see the machine's cores, not their share of them: two threads on one core wait for each other."""
    for cpus in ("2", "8"):
        worker = load({"WORKER_CPUS": cpus})["services"]["worker"]
        assert str(worker["environment"]["TIDEWATCH_ENGINE__THREADS"]) == cpus
        assert worker["deploy"]["resources"]["limits"]["cpus"] == cpus


def test_one_learner_shares_the_registry_of_the_workers() -> None:
    """A learner that publishes where no worker looks learns for nobody."""
    registry = COMPOSE["x-environment"]["TIDEWATCH_REGISTRY__FOLDER"]
    for name in ("worker", "learner"):
        assert f"registry:{registry}" in SERVICES[name]["volumes"]


# --- what people are told to type -------------------------------------------------------------------------------------

TOLD = (
    "README.md", "docs/operating.md", "docs/self-alerts.md", "deploy/kafka/README.md",
    "docker-compose.yml", "deploy/secured.yml", "deploy/gpu.yml", "deploy/Dockerfile",
)  # fmt: skip
LINE = r"^(?:    |#   )(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?({program} .*)$"


def lines(program: str) -> list[tuple[str, str]]:
    """File and command line of everything to be typed that begins with a program; remarks behind it are cut off."""
    found = []
    for name in TOLD:
        text = (ROOT / name).read_text().replace("\\\n", " ")
        typed = re.findall(LINE.format(program=program), text, re.MULTILINE)
        found += [(name, re.split(r" {3,}", line)[0]) for line in typed]
    return found


@pytest.mark.parametrize(("name", "line"), lines("tidewatch"))
def test_every_command_to_be_typed_parses(name: str, line: str) -> None:
    """A page with a command that was renamed costs whoever is on call the minutes they do not have."""
    command, *words = shlex.split(line)[1:]
    module = import_module(COMMANDS[command].module_name(command))
    assert build_parser(command, module).parse_args([command, *words]).command == command


@pytest.mark.parametrize("name", TOLD)
def test_every_command_that_is_mentioned_exists(name: str) -> None:
    """The same in running text, options included."""
    text = " ".join((ROOT / name).read_text().split())
    for command, rest in re.findall(r"tidewatch ([a-z]+)\b([^`.,;:()]*)", text) if name.endswith(".md") else ():
        assert command in COMMANDS, rest
        helps = _help_of(command)
        assert all(option in helps for option in re.findall(r"--[a-z-]+", rest)), (command, rest)


@cache
def _help_of(command: str) -> str:
    """Its help, and those of its actions."""
    parser = build_parser(command, import_module(COMMANDS[command].module_name(command)))
    nested = [parser]
    for each in nested:
        actions = [action for action in each._actions if isinstance(action, argparse._SubParsersAction)]
        nested += [child for action in actions for child in action.choices.values()]
    return "\n".join(each.format_help() for each in nested)


@pytest.mark.parametrize(("name", "line"), lines(r"docker compose"))
def test_every_compose_command_names_files_profiles_and_services_that_exist(name: str, line: str) -> None:
    """The same for containers; what runs inside one is a command of ours."""
    words = shlex.split(line)[2:]
    services, profiles = set(SERVICES), {p for it in SERVICES.values() for p in it.get("profiles", [])}
    actions = [word for word in words if word in ("up", "down", "run", "exec")]
    assert len(actions) == 1, line
    at = words.index(actions[0])
    options = dict(itertools.pairwise(words[:at]))
    assert all((ROOT / file).exists() for option, file in itertools.pairwise(words[:at]) if option == "-f")
    assert options.get("--profile") in {None, *profiles}
    rest = [word for word in words[at + 1 :] if not word.startswith("-") and "=" not in word]
    if actions[0] in ("run", "exec"):
        service, *inside = rest if rest[1:] else [*rest, *map(str, SERVICES[rest[0]]["command"])]
        inside = inside[1:] if inside[0] == "tidewatch" else inside
        assert service in services
        assert inside[0] in COMMANDS
    else:
        assert set(rest) <= services
    scaled = [word.partition("=")[0] for word in words if re.fullmatch(r"\w+=\d+", word)]
    assert set(scaled) <= services


@pytest.mark.parametrize("name", ["README.md", "docs/operating.md"])
def test_every_file_that_a_guide_names_is_there(name: str) -> None:
    """A page that points nowhere ends the reading."""
    named = re.findall(r"`((?:deploy|pipeline|models)/[\w./-]+)`", (ROOT / name).read_text())
    assert len(named) >= 5
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_page_about_self_alerts_is_made_from_the_rules() -> None:
    """Two texts about one alert would soon say different things: python deploy/prometheus/describe.py."""
    assert PAGE.read_text() == page()
    assert "{{" not in PAGE.read_text()


# --- image ------------------------------------------------------------------------------------------------------------


def test_dockerfile_passes_the_linter() -> None:
    """Pinned bases, no shell traps."""
    run(BIN / "hadolint", "--failure-threshold", "info", DOCKERFILE)


def test_everything_the_image_copies_exists_and_is_let_through() -> None:
    """The ignore file lets nothing pass by default; what it forgets is missing in the image."""
    text = DOCKERFILE.read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for word in line.split()]
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


def test_the_image_is_not_root_and_runs_the_worker() -> None:
    """One image for every role: the command picks it."""
    last = DOCKERFILE.read_text().rpartition("FROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert 'ENTRYPOINT ["tidewatch"]' in last
    assert 'CMD ["worker"]' in last


def test_settings_files_load() -> None:
    """What is mounted is what an operator edits."""
    for path in (ROOT / "deploy" / "config").glob("*.toml"):
        assert tomllib.loads(path.read_text())
        Settings.load(path)


# --- Grafana and Prometheus -------------------------------------------------------------------------------------------


def test_dashboards_are_what_the_generator_makes() -> None:
    """A change by hand would be lost with the next one by code: python deploy/grafana/generate.py."""
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == dashboards()


def test_dashboards_are_ones_that_grafana_reads() -> None:
    """Read back by Grafana's own models, no panel hides another, and each row is filled to its end."""
    for path in FOLDER.glob("*.json"):
        board = json.loads(path.read_text())
        read = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
        assert [panel["title"] for panel in read["panels"]] == [panel["title"] for panel in board["panels"]]
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
            assert at["x"] + at["w"] <= 24
            assert not taken & cells, panel["title"]
            taken |= cells


def test_panels_have_ids_of_their_own_descriptions_and_queries_with_letters() -> None:
    """Identifiers that repeat, or a query without its letter, make Grafana drop panels without a word."""
    for path in FOLDER.glob("*.json"):
        board = json.loads(path.read_text())
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        for panel in board["panels"]:
            letters = [target["refId"] for target in panel.get("targets", [])]
            assert len(set(letters)) == len(letters)
            assert all(letters)
            assert panel["type"] == "row" or panel["description"]


def test_provisioning_points_at_what_is_mounted() -> None:
    """Grafana starts without its dashboards as happily as with them."""
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards" / "tidewatch.yml").read_text())["providers"]
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    mounts = [mount.split(":")[1] for mount in SERVICES["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (FOLDER / home.removeprefix(provider["options"]["path"] + "/")).exists()
    assert source["url"] == "http://prometheus:9090"
    panels = [panel for path in FOLDER.glob("*.json") for panel in json.loads(path.read_text())["panels"]]
    used = {panel["datasource"]["uid"] for panel in panels if "datasource" in panel}
    assert used == {source["uid"]}


def test_rules_and_dashboards_name_metrics_that_a_role_has() -> None:
    """A rule over a metric that was renamed is silent for ever."""
    roles = (Metrics(), LearnerMetrics(), MonitorMetrics({}, 1), NotifyMetrics())
    made = {metric.name for role in roles for metric in role.registry.collect()}
    ends = ("", "_total", "_bucket", "_sum", "_count")
    known = {f"{name}{end}" for name in made for end in ends}
    files = [*(ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"), *FOLDER.glob("*.json")]
    for path in files:
        assert set(NAME.findall(path.read_text())) <= known, path.name
