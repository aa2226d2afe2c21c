"""``tidewatch worker``: consume, score and emit until told to stop."""

from __future__ import annotations

import argparse
import logging

from pipeline.errors import TransientError
from pipeline.health import Health
from pipeline.metrics import Metrics
from pipeline.partition import Phase
from pipeline.profile import alarm_every_s
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.stopping import Stopping
from pipeline.wiring import build_worker, settle_memory
from pipeline.worker import Worker

logger = logging.getLogger(__name__)

CONNECT_RETRY_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The worker's own options; everything else is settings."""
    add_settings_option(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C: the first asks (commit, save, leave the group), the second insists."""
    settings = Settings.load(args.settings)
    stopping = Stopping("committing and saving")
    metrics = Metrics()
    metrics.show_budgets({name: alarm_every_s(profile.alarm_budget) for name, profile in settings.profiles.items()})
    with Health(settings.http.host, settings.http.port, metrics.registry) as health:
        logger.info("http address=%s", health.address)
        worker = _connected(settings, metrics, health, stopping)
        if worker is not None:
            work(worker, metrics, health, stopping)
    return 0


def _connected(settings: Settings, metrics: Metrics, health: Health, stopping: Stopping) -> Worker | None:
    """A worker, once both servers answer; waiting is said in readiness and in the log."""
    while not stopping.is_asked:
        try:
            return build_worker(settings, metrics.observe)
        except TransientError as error:
            logger.warning("waiting to connect: %s", error)
            health.set_ready(False, f"waiting to connect: {error}")
            stopping.wait(CONNECT_RETRY_S)
    return None


def work(worker: Worker, metrics: Metrics, health: Health, stopping: Stopping) -> None:
    """Step until told to stop; what ends it otherwise is not worked up: start-up is the recovery."""
    settle_memory()
    try:
        while not stopping.is_asked:
            worker.step()
            health.beat()
            health.set_ready(worker.waiting_for is None, worker.waiting_for or doing(worker))
            metrics.show(worker.status())
    except BaseException:
        worker.abandon()
        raise
    worker.stop()


def doing(worker: Worker) -> str:
    """What readiness says of a worker that waits for nobody: a rebuild of rows can take minutes, without a score."""
    replaying = sum(state.phase is Phase.REPLAYING for state in worker.partitions.values())
    return f"replaying {replaying} of {len(worker.partitions)} partitions" if replaying else "serving"
