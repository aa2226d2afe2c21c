"""``tidewatch monitor`` as a process, against a real Kafka."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest

from pipeline.records import Partition
from pipeline.servers import create_topics
from pipeline.wire import encode_alert
from tests.alerts import make_alert
from tests.real_kafka import forget, produce, unique, until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def page(log: Path, path: str) -> str:
    """What the process answers; empty before it listens."""
    address = re.search(r"http address=(?:http://)?([\w.]+:\d+)", log.read_text())
    if address is None:
        return ""
    connection = HTTPConnection(address[1], timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_a_monitor_overtaken_by_retention_goes_on(kafka_bootstrap: str, tmp_path: Path) -> None:
    """It reads a week of alerts at its start, of which the oldest may leave the log before it comes to them."""
    inputs, alerts, log = unique("in"), unique("alerts"), tmp_path / "log"
    create_topics(kafka_bootstrap, {inputs: 1, alerts: 1})
    settings = tmp_path / "settings.toml"
    settings.write_text(f'[profiles.p]\ntopics = ["{inputs}"]\nfeatures = ["value"]\n')
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap,
        "TIDEWATCH_KAFKA__ALERTS_TOPIC": alerts,
        "TIDEWATCH_HTTP__PORT": "0",
    }
    with log.open("w") as stderr:
        command = [sys.executable, "-m", "pipeline", "monitor", "--settings", str(settings)]
        process = subprocess.Popen(command, env=os.environ | environment, stderr=stderr)
    try:
        until(lambda: "anomaly_monitor_caught_up 1.0" in page(log, "/metrics"))
        process.send_signal(signal.SIGSTOP)
        for name in ("a", "b", "c"):  # a fetch under way may bring the first one
            produce(kafka_bootstrap, alerts, [encode_alert(make_alert(alert_id=name, stream_id=name, profile="p"))])
        forget(kafka_bootstrap, Partition(alerts, 0), 2)
        process.send_signal(signal.SIGCONT)
        until(lambda: process.poll() is not None or 'alert="c"' in page(log, "/metrics"))
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert "opening again where the log begins now" in log.read_text()
