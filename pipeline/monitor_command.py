"""``tidewatch monitor``: watch beside the workers for what they cannot see: streams that have gone silent.

Reads the input topics and the alerts topic. A stream that used to be regular and sends nothing for long opens an alert
with the signal "silent", which resolves when the stream speaks again. Shows on its metrics page how many alerts are
open, and the newest one by one with what was observed and expected, for the dashboards. One is enough; it commits
nothing, and learns the rhythm of the streams again at its start (settings: [monitor]).
"""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack

from pipeline.clock import Clock, SystemClock
from pipeline.health import Health
from pipeline.monitor import Followed, Monitor
from pipeline.monitor_metrics import MonitorMetrics
from pipeline.records import Alert
from pipeline.serving import serve
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.silence import Silence
from pipeline.stopping import Stopping
from pipeline.topics.base import Instant
from pipeline.topics.kafka import Cluster, Feeder
from pipeline.wire import encode_alert
from pipeline.wiring import build_cluster, build_messages

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The monitor's own options; everything else is settings."""
    add_settings_option(parser)


def run(args: argparse.Namespace) -> int:
    """Watch until SIGTERM or Ctrl-C; Kafka may come and go."""
    settings = Settings.load(args.settings)
    stopping = Stopping("leaving the topics")
    metrics = MonitorMetrics(
        {name: profile.groups.values() for name, profile in settings.profiles.items()},
        settings.monitor.max_shown_alerts,
    )
    with Health(settings.http.host, settings.http.port, metrics.registry) as health:
        logger.info("http address=%s", health.address)
        serve(lambda: _watch(settings, metrics, health, stopping), health, stopping)
    return 0


def _watch(settings: Settings, metrics: MonitorMetrics, health: Health, stopping: Stopping) -> None:
    cluster, clock = build_cluster(settings), SystemClock()
    with ExitStack() as opened:
        opened.callback(metrics.show_caught_up, False)  # whatever ends it
        monitor = _monitor(settings, cluster, metrics, clock, opened)
        while not stopping.is_asked:
            monitor.step()
            health.set_ready(True, "watching")


def _monitor(settings: Settings, cluster: Cluster, metrics: MonitorMetrics, clock: Clock, opened: ExitStack) -> Monitor:
    watch, now_ms = settings.monitor, clock.wall_ms()
    feeder = opened.enter_context(cluster.feeder())

    def followed(topic: str, lookback_s: float, profile: str = "") -> Followed:
        reader = opened.enter_context(cluster.reader(topic))
        return Followed(reader, Instant(now_ms - int(lookback_s * 1000)), profile)

    return Monitor(
        [followed(topic, watch.lookback_s, profile) for topic, profile in settings.profile_names().items()],
        followed(settings.kafka.alerts_topic, watch.alerts_lookback_s),
        settings.profiles,
        build_messages(settings),
        Silence(
            watch.silent_after_gaps,
            watch.min_silence_s,
            {name: profile.idle_reset_s for name, profile in settings.profiles.items()},
            watch.max_streams,
            clock.monotonic(),
        ),
        metrics,
        lambda alert: _send(feeder, settings.kafka.alerts_topic, alert),
        clock,
    )


def _send(feeder: Feeder, topic: str, alert: Alert) -> None:
    feeder.send(topic, alert.stream_id.encode(), encode_alert(alert))
    feeder.flush()
