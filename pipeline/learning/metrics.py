"""What the learner shows to Prometheus; no labels but profiles, phases and reasons."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

from models.learner import UpdateReport
from pipeline.learning.course import OUTCOMES, CourseStatus, Phase
from pipeline.learning.gate import Reason


class LearnerMetrics:
    """All metrics of a learner."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        if registry is None:
            registry = CollectorRegistry(auto_describe=True)
            ProcessCollector(registry=registry)
        self.registry = registry

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"anomaly_learner_{name}", text, ("profile", *labels), registry=registry)

        self._updates = Counter("anomaly_learner_updates", "Updates of the weights.", ["profile"], registry=registry)
        self._skipped = Counter(
            "anomaly_learner_chunks_skipped", "Chunks without a finite gradient.", ["profile"], registry=registry
        )
        self._seconds = Counter("anomaly_learner_seconds", "Time spent on updates.", ["profile"], registry=registry)
        self._decisions = Counter(
            "anomaly_learner_decisions", "Ends of trials, by how they ended.", ["profile", "event"], registry=registry
        )
        self._decided: dict[tuple[str, str], int] = {}
        self._stretches = gauge("stretches", "Fresh stretches that taught, since the start.")
        self._judged = gauge("judged", "Stretches by what the gate said of them, since the start.", "reason")
        self._streams = gauge("streams", "Streams followed.")
        self._closed = gauge("closed_streams", "Streams that may not teach now: alarmed, or unlike themselves.")
        self._reservoir = gauge("reservoir_stretches", "Stretches kept for rehearsal.")
        self._now = gauge("loss_now", "Loss of the serving version on whatever its streams say, nats per target.")
        self._serving = gauge("loss_serving", "Loss of the serving version on late stretches, nats per target.")
        self._learning = gauge("loss_learning", "Loss of the learning weights on the same, before they learned them.")
        self._gain = gauge("trial_gain", "Nats by which the challenger of the running trial predicts better.")
        self._phase = gauge("phase", "1 for the phase the profile is in.", "phase")
        self._drifting = gauge("drifting", "1 while the family has moved and is not caught up with.")
        self._lag = gauge("lag_records", "Records between the learner's position and the ends.")
        self._gradient = gauge("gradient_norm", "Gradient norm of the last update, before clipping.")

    def count(self, profile: str, report: UpdateReport, seconds: float) -> None:
        """An update was made."""
        self._updates.labels(profile).inc()
        self._skipped.labels(profile).inc(report.skipped)
        self._seconds.labels(profile).inc(seconds)
        self._gradient.labels(profile).set(report.gradient_norm)

    def show(self, profile: str, status: CourseStatus, lag: int) -> None:
        """Set the gauges of a profile, and count what was decided since."""
        self._updates.labels(profile)
        self._streams.labels(profile).set(status.streams)
        self._closed.labels(profile).set(status.closed)
        self._reservoir.labels(profile).set(status.reservoir)
        self._stretches.labels(profile).set(status.stretches)
        self._now.labels(profile).set(status.loss_now)
        self._serving.labels(profile).set(status.loss_serving)
        self._learning.labels(profile).set(status.loss_learning)
        self._gain.labels(profile).set(0.0 if math.isnan(status.gain) else status.gain)
        self._drifting.labels(profile).set(status.is_drifting)
        self._lag.labels(profile).set(lag)
        for phase in Phase:
            self._phase.labels(profile, phase.value).set(status.phase is phase)
        for event in OUTCOMES:
            before = self._decided.get((profile, event), 0)
            self._decisions.labels(profile, event.replace(" ", "_")).inc(status.decided[event] - before)
            self._decided[profile, event] = status.decided[event]
        for reason in Reason:
            self._judged.labels(profile, reason.value).set(status.judged.get(reason, 0))
