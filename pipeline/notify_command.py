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
from pathlib import Path

from pipeline.clock import SystemClock
from pipeline.errors import ConfigurationError, OffsetsGone, TransientError
from pipeline.health import Health
from pipeline.notify.alertmanager import PATH
from pipeline.notify.choice import Choice
from pipeline.notify.http import Receiver
from pipeline.notify.kafka import Bookmark, Renewed
from pipeline.notify.metrics import NotifyMetrics
from pipeline.notify.notifier import Notifier
from pipeline.settings import Notify, Settings
from pipeline.stopping import Stopping
from pipeline.topics.base import Instant
from pipeline.wiring import build_cluster

logger = logging.getLogger(__name__)

RETRY_S = 2.0

EXAMPLES = """\
examples:
  export TIDEWATCH_NOTIFY__URL=https://hooks.example/x
  tidewatch notify --settings tidewatch.toml

  TIDEWATCH_NOTIFY__KIND=alertmanager TIDEWATCH_NOTIFY__URL=http://alertmanager:9093 tidewatch notify
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The notifier's own options; everything else is settings."""
    parser.add_argument(
        "--settings", type=Path, help="TOML file; without one the defaults and the shipped profiles serve"
    )


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
        while not stopping.is_asked:
            try:
                _tell(settings, receiver, metrics, health, stopping)
            except TransientError as error:
                logger.warning("waiting for kafka: %s", error)
                health.set_ready(False, f"waiting for kafka: {error}")
                stopping.wait(RETRY_S)
            except OffsetsGone as error:
                logger.info("opening again where the log begins now: %s", error)
                stopping.wait(RETRY_S)
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
        bookmark = opened.enter_context(Bookmark(cluster.options(), group, cluster.call_deadline_s))
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
        for records in reader.read(begin):
            if stopping.is_asked:
                return
            notifier.take(records)
            notifier.resend()
            place.renew()
            health.beat()
