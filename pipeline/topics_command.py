"""``tidewatch topics``: show the topics that the settings name; --create makes those that are missing.

Inputs of every profile, scores, alerts and dead letters, with the partitions, retention and replication of [topics].
A topic that exists stays as it is, whatever its numbers, so repeating the command does no harm. Exit code 0: all exist;
1: some are missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from pipeline.settings import Settings, TopicPlan
from pipeline.settings_option import add_settings_option
from pipeline.topics.kafka import Cluster
from pipeline.wiring import build_cluster

EXIT_OK, EXIT_MISSING = 0, 1

EXAMPLES = """\
examples:
  tidewatch topics --settings tidewatch.toml             which are there, which are missing
  tidewatch topics --settings tidewatch.toml --create    make the missing ones
  TIDEWATCH_TOPICS__INPUTS__PARTITIONS=48 tidewatch topics --create
"""

HOUR_MS = 3_600_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to create."""
    add_settings_option(parser)
    parser.add_argument("--create", action="store_true", help="make the topics that are missing")


def run(args: argparse.Namespace) -> int:
    """One line for each topic; returns the exit code.

    Raises
    ------
    ConfigurationError
        A topic may not be created.
    BrokerAway
        Kafka does not answer.
    """
    settings = Settings.load(args.settings)
    cluster = build_cluster(settings)
    plans = planned(settings)
    there = cluster.topics()
    for name, plan in plans.items():
        if name in there:
            print(f"there    {name}")
        elif args.create:
            create(cluster, name, plan, settings.topics.replication)
            print(f"created  {name}: {_some(plan.partitions)}, {_kept(plan)}")
        else:
            print(f"missing  {name}")
    missing = plans.keys() - there
    return EXIT_MISSING if missing and not args.create else EXIT_OK


def planned(settings: Settings) -> Mapping[str, TopicPlan]:
    """Every topic the settings name, and how it is to be made."""
    kafka, topics = settings.kafka, settings.topics
    return dict.fromkeys(settings.profile_names(), topics.inputs) | {
        kafka.scores_topic: topics.scores,
        kafka.alerts_topic: topics.alerts,
        kafka.dead_letter_topic: topics.dead_letters,
    }


def create(cluster: Cluster, name: str, plan: TopicPlan, replication: int) -> None:
    """Make one topic, deleted by age alone: a compacted input could not be folded again."""
    retention_ms = -1 if plan.retention_h is None else int(plan.retention_h * HOUR_MS)
    configs = {"retention.ms": str(retention_ms), "cleanup.policy": "delete"}
    cluster.create({name: plan.partitions}, configs, replication)


def _some(partitions: int) -> str:
    return f"{partitions} partition" + ("" if partitions == 1 else "s")


def _kept(plan: TopicPlan) -> str:
    return "kept for ever" if plan.retention_h is None else f"kept for {plan.retention_h:g} h"
