"""``tidewatch check``: check settings, servers and model versions before a worker runs; changes nothing.

Reads the settings, tries the model version of every profile, asks Kafka about its topics (partitions, and whether they
keep records for as long as rebuilding rows needs) and about the versions that committed offsets name, asks Redis about
its policy and memory, measures for some seconds what so many streams need on this machine, and ends with a summary.

Exit code 0: ready, perhaps with warnings; 1: there are problems, each with what to do about it; 2: wrong command line.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from models.row import has_season, has_week
from pipeline.checks.finding import Facts, Finding, Level, ok, problem, summary, warning
from pipeline.checks.histories import check_histories
from pipeline.checks.kafka import check_kafka
from pipeline.checks.need import Need, check_needs, need_of
from pipeline.checks.redis import check_redis
from pipeline.checks.row import cost_of, describe_row, gigabytes, layout_of
from pipeline.checks.versions import check_versions
from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.wiring import apply_threads, build_cluster, choose_device, fold_threads, security_options
from pipeline.wording import table

EXIT_OK, EXIT_PROBLEMS = 0, 1
FEWEST_OBSERVATIONS_PER_ALARM = 100

EXAMPLES = """\
examples:
  tidewatch check                                      defaults, environment, shipped profiles
  tidewatch check --settings tidewatch.toml            your settings, and the servers they name
  tidewatch check --settings tidewatch.toml --offline  without asking any server
  tidewatch check --streams 50000                      are servers and this machine large enough for so many?
  tidewatch check --streams pumps=20000,fans=300
  tidewatch check --row sensor                         every number a stream of that profile carries, and its cost
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to check."""
    add_settings_option(parser)
    parser.add_argument("--offline", action="store_true", help="connect to neither Kafka nor Redis")
    parser.add_argument(
        "--streams",
        metavar="N",
        help="streams per profile (N, or PROFILE=N,PROFILE=N); a shortfall is reported as a problem "
        "(default: engine.max_resident_streams each, and a shortfall is only a warning)",
    )
    parser.add_argument("--row", metavar="PROFILE", help="only print the row layout of a profile and what it costs")


def run(args: argparse.Namespace) -> int:
    """Print findings and a summary.

    Raises
    ------
    ConfigurationError
        ``--row`` or ``--streams`` names no profile, or weights cannot be read for ``--row``.
    """
    if args.row is not None:
        return _print_row(Settings.load(args.settings), args.row)
    try:
        settings = Settings.load(args.settings)
    except ConfigurationError as error:
        findings = _shown([problem("settings", str(error))])
        print(summary(findings, "everything else"))
        return EXIT_PROBLEMS
    streams = streams_of(args.streams, settings)
    findings = _shown([_settings_finding(settings, args.settings), _device_finding(settings)])
    stream_bytes = _print_profiles(settings)
    findings += _shown(_budget_findings(settings))
    findings += _shown(check_versions(settings))
    facts = Facts()
    if not args.offline:
        findings += _shown(check_kafka(settings, security_options(settings.kafka.security), facts))
        if facts.partitions:
            findings += _shown(check_histories(settings, build_cluster(settings)))
        findings += _shown(check_redis(settings, stream_bytes, facts))
    needs = _needs(settings, {name: streams[name] for name in stream_bytes if name in streams})
    findings += _shown(check_needs(needs, facts, warning if args.streams is None else problem))
    print(summary(findings, "connections" if args.offline else ""))
    return EXIT_PROBLEMS if any(finding.level is Level.PROBLEM for finding in findings) else EXIT_OK


def streams_of(text: str | None, settings: Settings) -> dict[str, int]:
    """How many streams each profile has: ``N`` of each, ``PROFILE=N,PROFILE=N``, or what a worker may hold.

    Raises
    ------
    ConfigurationError
        It is none of these, or names a profile that there is not.
    """
    if text is None:
        return dict.fromkeys(settings.profiles, settings.engine.max_resident_streams)
    named = dict(part.partition("=")[::2] for part in text.split(",")) if "=" in text else None
    counts = dict.fromkeys(settings.profiles, text) if named is None else named
    unknown = counts.keys() - settings.profiles.keys()
    if unknown:
        raise ConfigurationError(f"--streams: no profile {sorted(unknown)}; there are {', '.join(settings.profiles)}")
    if not all(count.isdigit() and int(count) > 0 for count in counts.values()):
        raise ConfigurationError(f"--streams: write N, or PROFILE=N,PROFILE=N with numbers above 0, not {text!r}")
    return {name: int(count) for name, count in counts.items()}


def _needs(settings: Settings, streams: Mapping[str, int]) -> list[Need]:
    """What these streams need, on the device and with the threads of a worker."""
    try:
        device = choose_device(settings.engine.device)
    except ConfigurationError:  # said already
        device = "cpu"
    apply_threads()
    threads = fold_threads(settings) if device == "cpu" else 1
    return [
        need_of(name, settings.profiles[name], number, settings, device, threads) for name, number in streams.items()
    ]


def _shown(findings: Iterable[Finding]) -> list[Finding]:
    """Print each finding as it is made: a server that does not answer takes its time."""
    kept = []
    for finding in findings:
        print(finding.line(), flush=True)
        kept.append(finding)
    return kept


def _print_row(settings: Settings, name: str) -> int:
    profile = settings.profiles.get(name)
    if profile is None:
        raise ConfigurationError(f"there is no profile {name!r}; there are {', '.join(settings.profiles)}")
    print(describe_row(name, profile))
    return EXIT_OK


def _settings_finding(settings: Settings, path: Path | None) -> Finding:
    origin = "defaults and environment" if path is None else str(path)
    return ok("settings", f"{origin}: profiles {', '.join(settings.profiles)}; registry {settings.registry.folder}")


def _budget_findings(settings: Settings) -> Iterator[Finding]:
    """Profiles whose alarm budget has few observations to an alarm: ordinary ones are anomalous then."""
    for name, profile in settings.profiles.items():
        if profile.interval_s is None:
            continue
        observations = profile.fold().alarm_every_s / profile.interval_s
        if observations < FEWEST_OBSERVATIONS_PER_ALARM:
            yield warning(
                name,
                f'alarm_budget "{profile.alarm_budget}" allows an alarm for every {observations:.3g} observations, so '
                f"that ordinary ones reach the threshold; from {FEWEST_OBSERVATIONS_PER_ALARM} on it tells faults from "
                "them: allow fewer alarms",
            )


def _device_finding(settings: Settings) -> Finding:
    try:
        return ok("device", choose_device(settings.engine.device))
    except ConfigurationError as error:
        return problem("device", str(error))


def _print_profiles(settings: Settings) -> dict[str, int]:
    """A table of the profiles; returns the Redis bytes of a stream of those whose layout is known."""
    stream_bytes, rows = {}, []
    for name, profile in settings.profiles.items():
        try:
            stream_bytes[name] = cost_of(layout_of(profile)).redis_bytes
            cost = gigabytes(stream_bytes[name])
        except ConfigurationError:  # the versions' check says why
            cost = "?"
        predictor = (profile.builtin() or profile.predictor) + (", light" if profile.light else "")
        features = str(len(profile.features))
        fold, budget = profile.fold(), profile.alarm_budget
        remembers = "day and week" if has_week(fold) else "day" if has_season(fold) else "no times"
        rows.append((name, features, predictor, fold.evidence, remembers, budget, cost, ", ".join(profile.topics)))
    head = ("profile", "features", "predictor", "evidence", "remembers", "alarm budget", "Redis per stream", "topics")
    print("", *table(head, rows, right=(1, 6)), "", sep="\n")
    return stream_bytes
