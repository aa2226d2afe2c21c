"""``tidewatch notify``: tell people about alerts, by a webhook or by Alertmanager.

Reads the alerts topic from where it stopped (a first start: from now on) and posts each wanted event, in order, at
least once: it is tried again until the receiver takes it, refuses it, or [notify] deadline_s has passed. The header
Idempotency-Key names the event, so that a receiver can drop what it has already. An alert below min_severity is told
once it reaches it. Run one; it keeps its place in the consumer group GROUP-notify.

webhook: the alert's JSON, as on the topic. alertmanager: its API, version 2 (url without a path; /api/v2/alerts is
added), open alerts repeated every resend_s.
"""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack

from pipeline.clock import SystemClock
from pipeline.connections import Notify
from pipeline.errors import ConfigurationError
from pipeline.health import Health
from pipeline.notify.alertmanager import PATH
from pipeline.notify.choice import Choice
from pipeline.notify.http import Receiver
from pipeline.notify.metrics import NotifyMetrics
from pipeline.notify.notifier import Notifier
from pipeline.serving import serve
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.stopping import Stopping
from pipeline.topics.base import Instant
from pipeline.topics.renewed import Renewed
from pipeline.wiring import build_cluster

logger = logging.getLogger(__name__)

LAG_S = 10.0
"""How often it is asked what is still to be read."""

EXAMPLES = """\
examples:
  export TIDEWATCH_NOTIFY__URL=https://hooks.example/x
  tidewatch notify --settings tidewatch.toml

  TIDEWATCH_NOTIFY__KIND=alertmanager TIDEWATCH_NOTIFY__URL=http://alertmanager:9093 tidewatch notify
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The notifier's own options; everything else is settings."""
    add_settings_option(parser)


def run(args: argparse.Namespace) -> int:
    """Tell until SIGTERM or Ctrl-C; Kafka and the receiver may come and go.

    Raises
    ------
    ConfigurationError
        No address to tell, the alerts topic does not exist, or it ends before the place that was kept.
    """
    settings = Settings.load(args.settings)
    receiver = build_receiver(settings.notify)
    stopping = Stopping("what is in hand is told again by the next one")
    metrics = NotifyMetrics()
    with Health(settings.http.host, settings.http.port, metrics.registry, max_silence_s=900.0) as health:
        logger.info("http address=%s receiver=%s", health.address, receiver.name)
        serve(lambda: _tell(settings, receiver, metrics, health, stopping), health, stopping)
    return 0


def build_receiver(notify: Notify) -> Receiver:
    """Where notifications go.

    Raises
    ------
    ConfigurationError
        The settings name none.
    """
    if notify.url is None:
        raise ConfigurationError("whom to tell? set notify.url, or TIDEWATCH_NOTIFY__URL where it holds a secret")
    url = notify.url.get_secret_value()
    if notify.kind == "alertmanager" and not url.endswith(PATH):
        url = url.rstrip("/") + PATH
    headers = {} if notify.token is None else {"Authorization": f"Bearer {notify.token.get_secret_value()}"}
    return Receiver(url, headers, notify.timeout_s)


def _tell(settings: Settings, receiver: Receiver, metrics: NotifyMetrics, health: Health, stopping: Stopping) -> None:
    cluster, clock, notify = build_cluster(settings), SystemClock(), settings.notify
    group = f"{settings.kafka.group}-notify"
    with ExitStack() as opened:
        bookmark = opened.enter_context(cluster.bookmark(group))
        reader = opened.enter_context(cluster.reader(settings.kafka.alerts_topic))
        beginning, ends = reader.beginning(), reader.end()
        begin = bookmark.in_log(bookmark.committed(ends), beginning)
        for partition, offset in begin.items():
            if offset > ends[partition]:  # waiting would not help, and what is untold only a person can say
                raise ConfigurationError(
                    f"offset {offset} of group {group} lies past the end of {partition}, {ends[partition]}: was the "
                    "topic made anew? Reset the group's offsets"
                )
        place = Renewed(bookmark, begin, clock)
        choice = Choice(notify.events, notify.min_severity)
        notifier = Notifier(
            *(notify, receiver, choice, place, metrics, clock),
            *(health.beat, stopping.wait, lambda: stopping.is_asked),
        )
        past = reader.at(Instant(clock.wall_ms() - int(settings.monitor.alerts_lookback_s * 1000)))
        for records in reader.read(past, begin):
            if stopping.is_asked:
                return
            notifier.recall(records)
            health.beat()
        health.set_ready(True, "telling")
        lag_due_s = clock.monotonic() + LAG_S
        for records in reader.read(begin):
            if stopping.is_asked:
                return
            notifier.take(records)
            notifier.resend()
            place.renew()
            health.beat()
            if clock.monotonic() >= lag_due_s:
                lag_due_s = clock.monotonic() + LAG_S
                metrics.behind(reader.behind())
