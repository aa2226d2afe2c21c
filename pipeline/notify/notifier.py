"""From the alerts topic to a receiver: in order, at least once, each event until it is delivered or given up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from pipeline.clock import Clock
from pipeline.connections import Notify
from pipeline.errors import DecodeError
from pipeline.notify.alertmanager import encode
from pipeline.notify.choice import Choice
from pipeline.notify.http import Receiver
from pipeline.notify.metrics import NotifyMetrics
from pipeline.records import Alert, Partition, Record
from pipeline.topics.base import Progress
from pipeline.wire import decode_alert, encode_alert

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
HOLDS = 4
AT_ONCE = 200


class Notifier:
    """Tells the events a choice wants.

    Parameters
    ----------
    beat
        Called before every event and every pause: a sign of life.
    wait
        Lets so many seconds pass, or fewer when the process is to end.
    is_ending
        Whether it is.
    """

    def __init__(
        self,
        settings: Notify,
        receiver: Receiver,
        choice: Choice,
        progress: Progress,
        metrics: NotifyMetrics,
        clock: Clock,
        beat: Callable[[], None],
        wait: Callable[[float], None],
        is_ending: Callable[[], bool],
    ) -> None:
        self._settings, self._receiver, self._choice = settings, receiver, choice
        self._progress, self._metrics, self._clock = progress, metrics, clock
        self._beat, self._wait, self._is_ending = beat, wait, is_ending
        self._resend_due_s = clock.monotonic()

    def recall(self, records: Iterable[tuple[Partition, Record]]) -> None:
        """Learn from events that were told before this process began; tells nothing."""
        for _, record in records:
            alert = _decoded(record)
            if alert is not None:
                self._choice.wants(alert)

    def take(self, records: Sequence[tuple[Partition, Record]]) -> None:
        """Tell what is wanted of these, committing each; ends early where the process is to end.

        Telling a backlog can take longer than Alertmanager holds an open alert, so they are repeated meanwhile.

        Raises
        ------
        BrokerAway
            Progress cannot be committed; what was told since is told again by the next process.
        """
        repeat_from_s = self._clock.monotonic() + self._settings.resend_s
        for partition, record in records:
            self._beat()
            alert = _decoded(record)
            if alert is not None and self._choice.wants(alert) and not self._tell(alert):
                return
            self._progress.commit(partition, record.offset + 1)
            if self._is_ending():
                return
            if self._clock.monotonic() >= repeat_from_s:
                self.resend()

    def resend(self) -> None:
        """Repeat open alerts to Alertmanager when it is time; a failure waits for the next time."""
        if self._settings.kind != "alertmanager" or self._clock.monotonic() < self._resend_due_s:
            return
        self._resend_due_s = self._clock.monotonic() + self._settings.resend_s
        told = self._choice.open()
        for begin in range(0, len(told), AT_ONCE):
            answer = self._receiver.post(self._alertmanager_body(told[begin : begin + AT_ONCE]), {})
            if answer.result != "delivered":
                logger.warning("open alerts not repeated: %s %s", self._receiver.name, answer.reason)
                return

    def _tell(self, alert: Alert) -> bool:
        """Try until it is done with; ``False`` where the process is to end before."""
        begun_s, pause_s = self._clock.monotonic(), FIRST_PAUSE_S
        body = self._body(alert)
        key = f"{alert.alert_id}-{alert.event}-{alert.offset}-{alert.index}"
        while True:
            tried_s = self._clock.monotonic() - begun_s
            self._metrics.attempt(tried_s)
            answer = self._receiver.post(body, {"Idempotency-Key": key})
            if answer.result != "again":
                return self._done(alert, answer.result, answer.reason)
            wait_s = max(pause_s, answer.after_s)
            left_s = self._settings.deadline_s - (self._clock.monotonic() - begun_s)
            if left_s <= 0:
                return self._done(alert, "given_up", answer.reason)
            logger.warning("again in %.1f s: %s %s", wait_s, self._receiver.name, answer.reason)
            self._beat()
            self._wait(min(wait_s, left_s))
            if self._is_ending():
                return False
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _done(self, alert: Alert, outcome: str, reason: str) -> bool:
        self._metrics.done(outcome)
        if outcome == "delivered":
            logger.info("told event=%s alert=%s stream=%s", alert.event, alert.alert_id, alert.stream_id)
        else:
            where = f"alert={alert.alert_id} event={alert.event} stream={alert.stream_id}"
            logger.error("not told (%s): %s %s %s", outcome, where, self._receiver.name, reason)
        return True

    def _body(self, alert: Alert) -> bytes:
        return encode_alert(alert) if self._settings.kind == "webhook" else self._alertmanager_body([alert])

    def _alertmanager_body(self, alerts: Sequence[Alert]) -> bytes:
        return encode(alerts, self._clock.wall_ms(), int(HOLDS * self._settings.resend_s * 1000))


def _decoded(record: Record) -> Alert | None:
    try:
        return decode_alert(record.value or b"")
    except DecodeError as error:
        logger.warning("skipped offset %s of the alerts topic: %s", record.offset, error)
        return None
