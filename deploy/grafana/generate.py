"""The dashboards as code: ``python deploy/grafana/generate.py`` writes dashboards/*.json, which Grafana provisions.

Change a panel here, never in the JSON; a test compares the two, and asks a live Prometheus every query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphDrawStyle,
    LegendDisplayMode,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    ThresholdsMode,
    VariableRefresh,
)
from grafana_foundation_sdk.models.dashboard import Threshold as Step
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
WIDTH = 24
WORKER = 'job="tidewatch-worker",instance=~"$instance"'
LEARNER = 'job="tidewatch-learner"'


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL and the name of what it gives; ``now``: one value each, for tables and single numbers."""

    expr: str
    legend: str = ""
    now: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """A panel of curves."""

    title: str
    text: str
    queries: Sequence[Query]
    unit: str = "short"
    width: int = 8
    stacked: bool = False
    bars: bool = False
    band: bool = False

    def build(self) -> timeseries.Panel:
        """The panel."""
        panel = (
            timeseries.Panel()
            .title(self.title)
            .description(self.text)
            .datasource(SOURCE)
            .unit(self.unit)
            .span(self.width)
            .height(8)
            .line_width(1)
            .show_points(VisibilityMode.NEVER)
            .legend(common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).show_legend(True))
            .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        )
        if self.stacked or self.bars:
            panel = panel.fill_opacity(30).stacking(common.StackingConfig().mode(StackingMode.NORMAL))
        if self.bars:
            panel = panel.draw_style(GraphDrawStyle.BARS).fill_opacity(80)
        if self.band:
            panel = panel.override_by_name("band, upper", [DynamicConfigValue("custom.fillBelowTo", "band, lower")])
            panel = panel.override_by_name("observed", [DynamicConfigValue("custom.lineWidth", 3)])
        for letter, query in zip(ascii_uppercase, self.queries, strict=False):
            panel = panel.with_target(target(query, letter))
        return panel


@dataclass(frozen=True, slots=True)
class Number:
    """A panel of one number for each series, coloured from ``warn`` and ``bad`` on (above, or below where reversed)."""

    title: str
    text: str
    query: Query
    unit: str = "short"
    width: int = 4
    warn: float | None = None
    bad: float | None = None

    def build(self) -> stat.Panel:
        """The panel."""
        steps = [Step(value=None, color="green")]
        steps += [Step(value=self.warn, color="orange")] if self.warn is not None else []
        steps += [Step(value=self.bad, color="red")] if self.bad is not None else []
        return (
            stat.Panel()
            .title(self.title)
            .description(self.text)
            .datasource(SOURCE)
            .unit(self.unit)
            .span(self.width)
            .height(5)
            .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
            .with_target(target(self.query))
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """A panel with a line for each series; ``link`` leads on, with ${__data.fields.LABEL} of the line filled in."""

    title: str
    text: str
    query: Query
    width: int = WIDTH
    link: tuple[str, str] | None = None

    def build(self) -> table.Panel:
        """The panel."""
        hidden = dict.fromkeys(("Time", "__name__", "job", "instance"), True)
        panel = (
            table.Panel()
            .title(self.title)
            .description(self.text)
            .datasource(SOURCE)
            .span(self.width)
            .height(9)
            .filterable(True)
            .with_target(target(self.query).format(PromQueryFormat.TABLE))
            .transformations([DataTransformerConfig("organize", options={"excludeByName": hidden})])
        )
        if self.link is not None:
            title, url = self.link
            panel = panel.data_links([dashboard.DashboardLink(title).url(url)])
        return panel


Panel = Graph | Number | Rows


def target(query: Query, letter: str = "A") -> prometheus.Dataquery:
    """A query as Grafana keeps it; each of a panel has a letter of its own."""
    built = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).datasource(SOURCE).ref_id(letter)
    return built.instant() if query.now else built.range()


def variable(name: str, label: str, query: str, many: bool = True) -> dashboard.QueryVariable:
    """A choice at the top of a dashboard, filled from Prometheus."""
    made = (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )
    return made.multi(True).include_all(True).all_value(".*") if many else made


# --- alerts -----------------------------------------------------------------------------------------------------------

OPENED = 'anomaly_alert_events_total{event="opened",profile=~"$profile",group=~"$group"}'
OPEN = 'anomaly_open_alerts{profile=~"$profile",group=~"$group"}'
CHOSEN = 'profile=~"$profile",stream="$stream",feature="$feature"'
ALERTS: Sequence[tuple[str, Sequence[Panel]]] = (
    (
        "Now",
        (
            Number(
                "open, critical",
                "Alerts open now, far above their thresholds.",
                Query(f'sum({OPEN[:-1]},severity="critical"}})', now=True),
                bad=1,
            ),
            Number(
                "open, warning", "Alerts open now.", Query(f'sum({OPEN[:-1]},severity="warning"}})', now=True), warn=1
            ),
            Number("opened in 24 h", "Against the budget beside it.", Query(f"sum(increase({OPENED}[1d]))", now=True)),
            Number(
                "budget of 24 h",
                "False alarms that alarm_budget allows the streams present. Real faults are extra.",
                Query(
                    '86400 * sum(max by (profile) (anomaly_alarm_budget_per_second{profile=~"$profile"})'
                    ' * sum by (profile) (anomaly_rows_resident{profile=~"$profile"}))',
                    now=True,
                ),
            ),
            Number(
                "silent streams",
                "Streams that used to be regular and have sent nothing for long (monitor).",
                Query('sum(anomaly_silent_streams{profile=~"$profile"})', now=True),
                warn=1,
            ),
            Number(
                "streams watched",
                "By the monitor.",
                Query('sum(anomaly_watched_streams{profile=~"$profile"})', now=True),
            ),
        ),
    ),
    (
        "Over time",
        (
            Graph(
                "opened, by severity",
                "Alerts opened.",
                [Query(f"sum by (severity) (increase({OPENED}[$__rate_interval]))", "{{severity}}")],
                bars=True,
            ),
            Graph(
                "opened, by profile",
                "Alerts opened.",
                [Query(f"sum by (profile) (increase({OPENED}[$__rate_interval]))", "{{profile}}")],
                bars=True,
            ),
            Graph(
                "opened, by group",
                "Alerts opened; groups are named in the profile's settings.",
                [Query(f"sum by (group) (increase({OPENED}[$__rate_interval]))", "{{group}}")],
                bars=True,
            ),
            Graph(
                "open",
                "Alerts open at each time.",
                [Query(f"sum by (severity) ({OPEN})", "{{severity}}")],
                width=12,
                stacked=True,
            ),
            Graph(
                "silent streams",
                "Streams that used to be regular and have sent nothing for long.",
                [Query('sum by (profile) (anomaly_silent_streams{profile=~"$profile"})', "{{profile}}")],
                width=12,
            ),
        ),
    ),
    (
        "Open alerts (the newest 50; click a stream to look at it below)",
        (
            Rows(
                "open alerts",
                "Highest score so far of each open alert. tidewatch alerts show ALERT tells more.",
                Query('sort_desc(anomaly_alert_peak_score{profile=~"$profile",group=~"$group"})', now=True),
                link=(
                    "look at ${__data.fields.stream}",
                    "/d/tidewatch-alerts?var-stream=${__data.fields.stream}&${__url_time_range}",
                ),
            ),
        ),
    ),
    (
        "One stream: $stream, $feature",
        (
            Graph(
                "observed against expected",
                "Observed: as it comes in. Expected, and the band that holds 98 % of normal values: at each event of "
                "the alert.",
                [
                    Query(f"anomaly_alert_observed{{{CHOSEN}}}", "observed"),
                    Query(f"anomaly_alert_expected{{{CHOSEN}}}", "expected"),
                    Query(f"anomaly_alert_band_low{{{CHOSEN}}}", "band, lower"),
                    Query(f"anomaly_alert_band_high{{{CHOSEN}}}", "band, upper"),
                ],
                width=14,
                band=True,
            ),
            Graph(
                "score against threshold",
                "-log10 p at each event of the alert.",
                [
                    Query('max by (stream) (anomaly_alert_score{stream="$stream"})', "score"),
                    Query('max by (stream) (anomaly_alert_threshold{stream="$stream"})', "threshold"),
                ],
                width=10,
            ),
        ),
    ),
)

# --- operations -------------------------------------------------------------------------------------------------------


def _quantiles(metric: str, labels: str, by: str, quantiles: Sequence[float]) -> list[Query]:
    grouped = f"le, {by}" if by else "le"
    name = f"{{{{{by}}}}} " if by else ""
    return [
        Query(
            f"histogram_quantile({q}, sum by ({grouped}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))",
            f"{name}{q:.0%}",
        )
        for q in quantiles
    ]


def _rate(metric: str, by: str, more: str = "") -> Query:
    return Query(f"sum by ({by}) (rate({metric}{{{WORKER}{more}}}[$__rate_interval]))", f"{{{{{by}}}}}")


OPERATIONS: Sequence[tuple[str, Sequence[Panel]]] = (
    (
        "Health",
        (
            Number("workers at work", "Of those that answer.", Query("sum(anomaly_up)", now=True)),
            Number(
                "self-alerts firing",
                "Prometheus rules of Tidewatch; see its Alerts page for what to do.",
                Query('count(ALERTS{alertname=~"Tidewatch.+",alertstate="firing"}) or vector(0)', now=True),
                bad=1,
            ),
            Number("records behind", "Of all profiles.", Query("sum(anomaly_lag_records)", now=True), warn=1000),
            Number(
                "state not saved",
                "Oldest, over all workers.",
                Query("max(anomaly_unsaved_age_seconds)", now=True),
                unit="s",
                warn=30,
                bad=60,
            ),
            Number(
                "last commit",
                "Longest ago, over all workers.",
                Query("max(time() - anomaly_last_commit_timestamp_seconds)", now=True),
                unit="s",
            ),
            Number(
                "dead letters in 1 h",
                "Records that could not be used.",
                Query("sum(increase(anomaly_dead_letters_total[1h]))", now=True),
                warn=1,
            ),
        ),
    ),
    (
        "Throughput",
        (
            Graph(
                "observations folded",
                "Event times of streams.",
                [_rate("anomaly_observations_total", "profile")],
                unit="ops",
            ),
            Graph("scores emitted", "Event times of streams.", [_rate("anomaly_scores_total", "profile")], unit="ops"),
            Graph(
                "records read",
                "Kafka messages, and windows of them that were folded.",
                [
                    Query(f"sum(rate(anomaly_messages_total{{{WORKER}}}[$__rate_interval]))", "records"),
                    Query(f"sum(rate(anomaly_windows_total{{{WORKER}}}[$__rate_interval]))", "windows"),
                    Query(f"sum(rate(anomaly_windows_skipped_total{{{WORKER}}}[$__rate_interval]))", "skipped"),
                ],
                unit="ops",
            ),
            Graph(
                "records behind",
                "Between the committed offsets and the ends of the topics.",
                [Query(f"sum by (profile) (anomaly_lag_records{{{WORKER}}})", "{{profile}}")],
            ),
            Graph(
                "batch sizes",
                "Observations folded in one step.",
                _quantiles("anomaly_batch_observations", WORKER, "", (0.5, 0.95)),
            ),
            Graph(
                "folded without output",
                "Replay after a takeover, and windows marked silent.",
                [Query(f"sum(rate(anomaly_observations_silent_total{{{WORKER}}}[$__rate_interval]))", "silent")],
                unit="ops",
            ),
        ),
    ),
    (
        "Latency",
        (
            Graph(
                "from record to commit",
                "From a record's Kafka timestamp to its committed score.",
                _quantiles("anomaly_record_to_commit_seconds", WORKER, "record", (0.5, 0.99)),
                unit="s",
            ),
            Graph(
                "time by stage",
                "Share of each second that goes into a stage; poll is mostly waiting for records, unless there is lag.",
                [
                    Query(
                        f"sum by (stage) (rate(anomaly_stage_duration_seconds_sum{{{WORKER}}}[$__rate_interval]))",
                        "{{stage}}",
                    )
                ],
                stacked=True,
            ),
            Graph(
                "slowest steps by stage",
                "95 % are faster.",
                _quantiles("anomaly_stage_duration_seconds", WORKER, "stage", (0.95,)),
                unit="s",
            ),
            Graph(
                "commits",
                "Transactions committed.",
                [
                    Query(
                        f"sum by (instance) (rate(anomaly_commits_total{{{WORKER}}}[$__rate_interval]))", "{{instance}}"
                    )
                ],
                unit="ops",
            ),
            Graph(
                "age of the last commit",
                "Grows while nothing comes in, too.",
                [Query(f"time() - anomaly_last_commit_timestamp_seconds{{{WORKER}}}", "{{instance}}")],
                unit="s",
            ),
            Graph(
                "age of unsaved state",
                "About what a successor would fold again.",
                [Query(f"anomaly_unsaved_age_seconds{{{WORKER}}}", "{{instance}}")],
                unit="s",
            ),
        ),
    ),
    (
        "Errors",
        (
            Graph("dead letters", "By class of reason.", [_rate("anomaly_dead_letters_total", "reason")], unit="ops"),
            Graph(
                "late observations",
                "Not after the last one of their stream: counted, not scored.",
                [_rate("anomaly_observations_late_total", "profile")],
                unit="ops",
            ),
            Graph(
                "missing values",
                "Replaced by expectation.",
                [_rate("anomaly_values_imputed_total", "profile")],
                unit="ops",
            ),
            Graph(
                "partitions started again",
                "Each costs a reload of rows, no output.",
                [_rate("anomaly_partition_restarts_total", "reason")],
                unit="ops",
            ),
            Graph(
                "waiting",
                "1 while a worker waits for it.",
                [Query(f"max by (server) (anomaly_waiting_for{{{WORKER}}})", "{{server}}")],
            ),
            Graph(
                "partitions",
                "By state.",
                [Query(f"sum by (state) (anomaly_partitions{{{WORKER}}})", "{{state}}")],
                stacked=True,
            ),
        ),
    ),
    (
        "Learner (nats per target: lower is better, by .1 is much)",
        (
            Graph(
                "what is served against what is learning",
                "Loss on normal stretches of late, each predicted before it was learned from. The learning weights "
                "below the served ones by learner.margin: a candidate comes. Above for long: learning loses.",
                [
                    Query(f"anomaly_learner_loss_serving{{{LEARNER}}}", "{{profile}} serving"),
                    Query(f"anomaly_learner_loss_learning{{{LEARNER}}}", "{{profile}} learning"),
                ],
            ),
            Graph(
                "loss on everything",
                "Of the served version, on whatever its streams say. A rise that stays: they have moved.",
                [Query(f"anomaly_learner_loss_now{{{LEARNER}}}", "{{profile}}")],
            ),
            Graph(
                "trial: gain",
                "By how much the candidate in shadow, or the promoted version on probation, predicts better than the "
                "other one; 0 where none is tried. tidewatch models history says how trials ended.",
                [Query(f"anomaly_learner_trial_gain{{{LEARNER}}}", "{{profile}}")],
            ),
            Graph(
                "trials: how they ended",
                "In the last day. Rolled back: a promoted version did worse than its parent, which serves again.",
                [
                    Query(
                        f"sum by (event) (increase(anomaly_learner_decisions_total{{{LEARNER}}}[1d]))",
                        "{{event}}",
                    )
                ],
            ),
            Graph(
                "phase and drift",
                "1 for the phase a profile is in, and while its streams have moved and are not caught up with.",
                [
                    Query(f"anomaly_learner_phase{{{LEARNER}}}", "{{profile}} {{phase}}"),
                    Query(f"anomaly_learner_drifting{{{LEARNER}}}", "{{profile}} drift"),
                ],
            ),
            Graph(
                "stretches, by what the gate said",
                "Only normal ones teach. Closed: of streams that alarmed or are unlike themselves.",
                [Query(f"sum by (reason) (anomaly_learner_judged{{{LEARNER}}})", "{{reason}}")],
            ),
            Graph(
                "streams",
                "Followed, and of these closed: they may not teach now.",
                [
                    Query(f"anomaly_learner_streams{{{LEARNER}}}", "{{profile}} followed"),
                    Query(f"anomaly_learner_closed_streams{{{LEARNER}}}", "{{profile}} closed"),
                ],
            ),
            Graph(
                "updates",
                "Of the learning weights.",
                [Query(f"rate(anomaly_learner_updates_total{{{LEARNER}}}[$__rate_interval])", "{{profile}}")],
                unit="ops",
            ),
            Graph(
                "time spent learning",
                "Share of one core; learner.cpu_share bounds it, learner.drift_cpu_share while streams drift.",
                [Query(f"rate(anomaly_learner_seconds_total{{{LEARNER}}}[$__rate_interval])", "{{profile}}")],
                unit="percentunit",
            ),
            Graph(
                "records behind",
                "The learner's own position; it may lag, nobody waits for it.",
                [Query(f"anomaly_learner_lag_records{{{LEARNER}}}", "{{profile}}")],
            ),
        ),
    ),
    (
        "Resources",
        (
            Graph(
                "streams on the device",
                "The others wait in Redis.",
                [Query(f"sum by (profile) (anomaly_rows_resident{{{WORKER}}})", "{{profile}}")],
            ),
            Graph(
                "rows moved to Redis",
                "To make room for others.",
                [_rate("anomaly_rows_evicted_total", "profile")],
                unit="ops",
            ),
            Graph(
                "memory",
                "Of each process.",
                [Query('process_resident_memory_bytes{job=~"tidewatch-.+"}', "{{job}} {{instance}}")],
                unit="bytes",
            ),
            Graph(
                "CPU",
                "Cores in use.",
                [
                    Query(
                        'rate(process_cpu_seconds_total{job=~"tidewatch-.+"}[$__rate_interval])', "{{job}} {{instance}}"
                    )
                ],
            ),
            Rows(
                "model versions in use",
                "By profile. Two of one profile: a swap is under way.",
                Query(f"sum by (profile, version) (anomaly_model_info{{{WORKER}}})", now=True),
                width=12,
            ),
        ),
    ),
)


def build(
    title: str, uid: str, sections: Sequence[tuple[str, Sequence[Panel]]], variables: Sequence[dashboard.QueryVariable]
) -> str:
    """A dashboard as JSON."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .tags(["tidewatch"])
        .readonly()
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Tidewatch").type(DashboardLinkType.DASHBOARDS).tags(["tidewatch"]).keep_time(True)
        )
    )
    for each in variables:
        made = made.with_variable(each)
    ids = count(1)
    for name, panels in sections:
        made = made.with_row(dashboard.Row(name).id(next(ids)))
        for panel in panels:
            made = made.with_panel(panel.build().id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def dashboards() -> dict[str, str]:
    """Every dashboard: file name and JSON."""
    profile = variable("profile", "profile", "label_values(anomaly_alarm_budget_per_second, profile)")
    group = variable("group", "group", "label_values(anomaly_open_alerts, group)")
    stream = variable("stream", "stream", "label_values(anomaly_alert_score, stream)", many=False)
    of_stream = 'label_values(anomaly_alert_expected{stream="$stream"}, feature)'
    feature = variable("feature", "feature", of_stream, many=False)
    instance = variable("instance", "worker", "label_values(anomaly_up, instance)")
    return {
        "alerts.json": build("Tidewatch: alerts", "tidewatch-alerts", ALERTS, (profile, group, stream, feature)),
        "operations.json": build("Tidewatch: operations", "tidewatch-operations", OPERATIONS, (instance,)),
    }


def main() -> None:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
