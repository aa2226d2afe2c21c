"""``tidewatch learner``: learn the shared weights from live streams, and promote what predicts better.

Reads the input topics under a group of its own (GROUP-learner), beside the workers and never in their way. It learns
from normal stretches only, tries a candidate in shadow on fresh windows, promotes it only where it predicts better by
[learner] margin and raises no more alarms, and takes it back where it then does worse. "tidewatch models history" shows
every decision with its figures. Run one.
"""

from __future__ import annotations

import argparse
import logging
import os
from contextlib import ExitStack

import torch

from models.learner import renewed
from pipeline.clock import SystemClock
from pipeline.errors import CannotLearnError, ConfigurationError
from pipeline.health import Health
from pipeline.learning.course import Course, Renew
from pipeline.learning.learner import Learner, Reading
from pipeline.learning.metrics import LearnerMetrics
from pipeline.registry import Registry
from pipeline.serving import serve
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.stopping import Stopping
from pipeline.topics.base import Instant
from pipeline.topics.kafka import Cluster
from pipeline.versions_in_use import versions_in_use
from pipeline.wiring import build_cluster, build_messages, choose_device

logger = logging.getLogger(__name__)

NICENESS = 19
"""The most polite: beside a worker that needs all cores it gets a hundredth of one."""
BUSY_S = 900.0
"""The pooled tails of a candidate take a while, in which nothing is heard of the learner."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The learner's own options; everything else is settings."""
    add_settings_option(parser)


def run(args: argparse.Namespace) -> int:
    """Learn until SIGTERM or Ctrl-C; Kafka may come and go."""
    settings = Settings.load(args.settings)
    stopping = Stopping("keeping the position")
    torch.set_num_threads(1)  # its share is of one core
    os.nice(NICENESS)
    metrics = LearnerMetrics()
    with Health(settings.http.host, settings.http.port, metrics.registry, max_silence_s=BUSY_S) as health:
        logger.info("http address=%s", health.address)
        cluster = build_cluster(settings)
        courses = build_courses(settings, cluster)
        serve(lambda: _learn(settings, cluster, courses, metrics, health, stopping), health, stopping)
    return 0


def build_courses(settings: Settings, cluster: Cluster, renew: Renew = renewed) -> dict[str, Course]:
    """A course for each profile that can learn, its first version published where no worker has done it.

    What is served it leaves alone: the settings in force are those of the worker that started last.

    Raises
    ------
    VersionError
        What a profile serves cannot be loaded.
    ConfigurationError
        No profile can learn.
    """
    registry, clock = Registry(settings.registry.folder), SystemClock()
    device = choose_device(settings.engine.device)
    courses = {}
    for name, profile in settings.profiles.items():
        if registry.current(name) is None:
            registry.ensure(name, profile.builtin() or profile.predictor, profile.fold(), profile.scope)
        try:
            courses[name] = Course(
                name,
                profile,
                registry,
                settings.learner,
                clock.wall_ms,
                device,
                settings.engine.hidden_on_swap,
                lambda: versions_in_use(cluster, settings.kafka.group),
                renew,
            )
        except CannotLearnError as error:
            logger.warning("%s; it serves as it is. Restart the learner once another version is served", error)
    if not courses:
        raise ConfigurationError("none of the profiles has a predictor that can learn while it runs")
    return courses


def build_learner(
    settings: Settings, cluster: Cluster, courses: dict[str, Course], metrics: LearnerMetrics, opened: ExitStack
) -> Learner:
    """A learner at its position; readers are closed with ``opened``.

    Raises
    ------
    BrokerAway, ConfigurationError
        Kafka does not answer; a topic is missing.
    """
    clock, rules = SystemClock(), settings.learner
    bookmark = opened.enter_context(cluster.bookmark(f"{settings.kafka.group}-learner"))
    since = Instant(clock.wall_ms() - int(rules.lookback_s * 1000))
    profiles = {topic: profile for topic, profile in settings.profile_names().items() if profile in courses}
    readers = {topic: opened.enter_context(cluster.reader(topic)) for topic in profiles}
    begins = {topic: reader.at(since) for topic, reader in readers.items()}
    known = bookmark.committed({p: offset for begin in begins.values() for p, offset in begin.items()})
    known = bookmark.in_log(
        known, {p: offset for reader in readers.values() for p, offset in reader.beginning().items()}
    )
    readings = [
        Reading(
            profile,
            readers[topic],
            {p: min(offset, known[p]) for p, offset in begins[topic].items()},
            {p: known[p] for p in begins[topic]},
        )
        for topic, profile in profiles.items()
    ]
    return Learner(
        readings,
        courses,
        build_messages(settings),
        bookmark,
        clock,
        rules.cpu_share,
        rules.drift_cpu_share,
        metrics.count,
    )


def _learn(
    settings: Settings,
    cluster: Cluster,
    courses: dict[str, Course],
    metrics: LearnerMetrics,
    health: Health,
    stopping: Stopping,
) -> None:
    with ExitStack() as opened:
        learner = build_learner(settings, cluster, courses, metrics, opened)
        while not stopping.is_asked:
            learner.step()
            health.set_ready(True, "learning")
            for name, course in courses.items():
                metrics.show(name, course.status(), learner.lag[name])
        learner.stop()
