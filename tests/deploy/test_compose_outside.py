"""The deployment of docker-compose.yml, run outside containers: what it starts works together, dashboards included."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.topics.kafka import Cluster
from tests.deploy.compose import ROOT, Deployment
from tests.hook import Hook

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
NAME = re.compile(r"\banomaly_\w+|\bprocess_\w+")
DEADLINE_S, LOOKED_BACK_S = 60.0, 200.0
SOONER = {
    "monitor": {"TIDEWATCH_MONITOR__MIN_SILENCE_S": "5", "TIDEWATCH_MONITOR__SILENT_AFTER_GAPS": "3"},
    "learner": {"TIDEWATCH_LEARNER__STRETCH": "32", "TIDEWATCH_LEARNER__BATCH": "4"},
}
"""The replay is ten hours of three streams: too little for the default stretch of 128 observations to teach much."""

ROLES = ("worker", "learner", "monitor", "notify")


class Prometheus:
    """Asks a live Prometheus."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **arguments: str) -> Any:
        """The data of an answer."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Series that a query gives now."""
        result: list[dict[str, Any]] = self.ask("query", query=expr)["result"]
        return result

    def drawn(self, expr: str) -> list[float]:
        """Every number that a query has given so far, as a curve would show it."""
        end = time.time()
        result = self.ask("query_range", query=expr, start=str(end - LOOKED_BACK_S), end=str(end), step="2")["result"]
        return [number for series in result for _, value in series["values"] if math.isfinite(number := float(value))]

    def until(self, expr: str) -> list[dict[str, Any]]:
        """Ask until there is something."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := self.query(expr)):
            assert time.monotonic() < deadline, f"nothing for {expr}"
        return found


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    """Somebody to be told."""
    with Hook() as listening:
        yield listening


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, hook: Hook) -> Iterator[Deployment]:
    """Everything the file starts but Grafana, which is no package of Debian; fed by its replay."""
    running = Deployment(
        tmp_path_factory.mktemp("deployment"),
        {"REPLAY_SPEED": "max", "NOTIFY_URL": hook.url},
        leave_out=frozenset({"grafana"}),
        extra=SOONER,
    )
    try:
        running.up("kafka", "redis", "topics")
        assert running.processes["topics"].wait(60) == 0, running.log("topics")
        code, said = running.once("worker", "check")  # as the README says: on a cluster where nothing has run yet
        assert (code, "FAIL" in said) == (0, False), said
        running.up(*ROLES, "prometheus")
        for name in ("notify", "learner"):  # their first starts begin with what comes from now on
            running.wait_healthy(name)
        running.up("replay")
        code = running.processes["replay"].wait(120)
        assert code == 0, running.log("replay")
        yield running
    finally:
        codes = running.down()
    assert {codes[name] for name in (*ROLES, "topics", "replay")} == {0}, codes


@pytest.fixture(scope="module")
def live(deployment: Deployment) -> Prometheus:
    """Prometheus, once it has seen an alert of the replay open, the monitor show it, and the learner learn."""
    asked = Prometheus(deployment.address("prometheus:9090"))
    asked.until("anomaly_alert_observed")
    asked.until("rate(anomaly_scores_total[15s]) and anomaly_scores_total >= 1800")
    asked.until("anomaly_learner_updates_total > 0 and anomaly_learner_loss_learning < Inf")
    return asked


def test_every_service_is_healthy(deployment: Deployment) -> None:
    """The health checks of the file pass, so `docker compose up --wait` ends."""
    for name in ("kafka", "redis", *ROLES, "prometheus"):
        deployment.wait_healthy(name)


def test_our_services_write_to_their_volumes_only(deployment: Deployment, live: Prometheus) -> None:
    """Their file systems are read-only; what is written by accident would end a container, or be lost with it."""
    assert live.query("up")
    for name in (*ROLES, "topics", "replay"):
        assert not list(deployment.root(name).iterdir()), name
    assert list(deployment.volume("registry").iterdir())


def test_check_finds_the_running_deployment_ready(deployment: Deployment) -> None:
    """Topics, retention, Redis, versions of the shared registry, and room for so many streams as the file allows."""
    code, said = deployment.once("worker", "check")
    assert code == 0, said
    assert "FAIL" not in said
    assert "warn" not in said
    assert "every version they name is there" in said


def test_prometheus_scrapes_every_role(live: Prometheus) -> None:
    """A target that cannot be scraped shows as an empty dashboard."""
    up = {each["metric"]["job"]: each["value"][1] for each in live.until('up{job=~"tidewatch-.+"} == 1')}
    assert up == {f"tidewatch-{role}": "1" for role in ROLES}


def test_alerts_reach_people(live: Prometheus, hook: Hook) -> None:
    """The last step of the way of a record."""
    shown = live.until("anomaly_alert_observed")[0]["metric"]
    live.until('anomaly_notifications_total{outcome="delivered"} > 0')
    told = [json.loads(post.body) for post in hook.posts]
    assert ("opened", shown["stream"]) in {(alert["event"], alert["stream_id"]) for alert in told}


def test_nothing_of_tidewatch_is_wrong_in_a_healthy_deployment(live: Prometheus) -> None:
    """Rules that fire from the start are switched off by the first who sees them."""
    loaded = live.ask("rules")["groups"]
    assert {rule["name"] for group in loaded for rule in group["rules"]} == {
        rule["alert"]
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    }
    assert all(rule["health"] == "ok" for group in loaded for rule in group["rules"])
    assert live.query('ALERTS{alertstate="firing"}') == []


def queries(path: Path) -> list[tuple[str, str]]:
    """Panel and query of a dashboard."""
    return [
        (panel["title"], target["expr"])
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", [])
    ]


def filled(expr: str, stream: str, feature: str) -> str:
    """A query as Grafana sends it, with everything chosen."""
    for name, value in (("__rate_interval", "15s"), ("stream", stream), ("feature", feature)):
        expr = expr.replace(f"${name}", value)
    return re.sub(r"\$(profile|group|instance)\b", ".*", expr)


@pytest.mark.parametrize("path", DASHBOARDS, ids=[path.stem for path in DASHBOARDS])
def test_every_panel_shows_something(path: Path, live: Prometheus) -> None:
    """A panel over a metric that was renamed, or only of NaN, stays empty; nobody notices before they need it."""
    names = set(live.ask("label/__name__/values"))
    shown = live.until("anomaly_alert_observed")[0]["metric"]
    for title, expr in queries(path):
        assert set(NAME.findall(expr)) <= names, title
        asked = filled(expr, shown["stream"], shown["feature"])
        assert live.until(asked), f"{title}: nothing for {expr}"
        assert live.drawn(asked), f"{title}: nothing to draw for {expr}"


@pytest.mark.parametrize("path", DASHBOARDS, ids=[path.stem for path in DASHBOARDS])
def test_every_choice_has_something_to_choose(path: Path, live: Prometheus) -> None:
    """An empty variable empties every panel that uses it."""
    shown = live.until("anomaly_alert_observed")[0]["metric"]
    for variable in json.loads(path.read_text())["templating"]["list"]:
        series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()
        found = live.query(f"group by ({label}) ({filled(series, shown['stream'], '')})")
        assert [each for each in found if each["metric"].get(label)], variable["name"]


def test_rules_name_metrics_that_exist(live: Prometheus) -> None:
    """A rule over a metric that does not exist is silent for ever."""
    exist = set(live.ask("label/__name__/values"))
    for path in RULES:
        for name in set(NAME.findall(path.read_text())):
            assert name in exist, f"{path.name}: {name}"


def test_a_redis_that_goes_away_is_said_and_all_goes_on_when_it_is_back(
    deployment: Deployment, live: Prometheus
) -> None:
    """From a server that is gone to the alert about it, which no unit test of a rule shows. Comes last: it disturbs."""
    deployment.stop("redis")
    window = json.dumps({"stream_id": "new", "start": int(time.time() * 1000), "values": [[1.0]]}).encode()
    with Cluster(deployment.address("kafka:9092")).feeder() as feeder:
        feeder.send("sensor-windows", b"new", window)
        feeder.flush()
    live.until('ALERTS{alertname="TidewatchRedisAway"}')
    deployment.up("redis")
    live.until('max(anomaly_waiting_for{server="redis"}) == 0 and on () sum(anomaly_lag_records) == 0')
    live.until('sum(anomaly_rows_resident{profile="sensor"}) == 4')
