"""What comes out of a replay: scores and alerts as files, and the numbers of its summary.

Scores are one line for each observation, stream by stream in the order of their names, each stream's in the order it
was scored; alerts are in the order of event time. So equal scores give equal bytes, whatever the batches were.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from pipeline.epoch import iso_time
from pipeline.errors import ConfigurationError
from pipeline.open_alerts import at_its_worst
from pipeline.records import EVENTS, VERDICTS, Alert, Float32, Int64, Scores, UInt8
from pipeline.wire import encode_alert

SUFFIXES = (".csv", ".jsonl")
SCORE_COLUMNS = (
    *("stream_id", "time", "score", "threshold", "verdict", "signal", "feature", "imputed_share", "state"),
    *("profile", "model_version"),
)
ALERT_COLUMNS = (
    *("alert_id", "event", "severity", "stream_id", "time", "onset", "score", "peak_score", "threshold", "signal"),
    *("direction", "feature", "observed", "expected", "band_low", "band_high", "usual", "state", "profile"),
    "model_version",
)


def check_suffix(path: Path) -> Path:
    """The same path, if its ending names a format.

    Raises
    ------
    ConfigurationError
        It does not.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigurationError(f"{path}: scores and alerts are written as {' or '.join(SUFFIXES)}")
    return path


@dataclass(slots=True)
class Tally:
    """The numbers of a summary, added up as a replay goes.

    Attributes
    ----------
    worst
        Every alert as it stands, with the evidence of its highest score, by id.
    """

    streams: set[str] = field(default_factory=set)
    scored: int = 0
    verdicts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(VERDICTS), np.int64))
    late: int = 0
    silent: int = 0
    dead_letters: int = 0
    opened: int = 0
    worst: dict[str, Alert] = field(default_factory=dict)

    def add_scores(self, scores: Scores) -> None:
        """Count the observations of one batch."""
        self.streams.update(scores.stream_ids)
        self.scored += len(scores.score)
        self.verdicts += np.bincount(scores.verdict, minlength=len(VERDICTS))

    def add_alerts(self, alerts: Sequence[Alert]) -> None:
        """Count alert events, and remember how each alert stands."""
        for alert in alerts:
            self.opened += alert.event == "opened"
            self.worst[alert.alert_id] = at_its_worst(self.worst.get(alert.alert_id), alert)

    def worst_alerts(self, count: int) -> list[Alert]:
        """The alerts with the highest peaks, highest first."""
        return sorted(self.worst.values(), key=lambda a: (-a.peak_score, a.onset_ms, a.stream_id))[:count]


@dataclass(slots=True)
class _Parts:
    """Scores of one stream under one version."""

    times_ms: list[Int64] = field(default_factory=list)
    score: list[Float32] = field(default_factory=list)
    threshold: list[Float32] = field(default_factory=list)
    verdict: list[UInt8] = field(default_factory=list)
    signal: list[UInt8] = field(default_factory=list)
    feature: list[npt.NDArray[np.int16]] = field(default_factory=list)
    imputed: list[Float32] = field(default_factory=list)
    partial: list[bool] = field(default_factory=list)


class Outputs:
    """Collects what a replay gives, and writes it where asked. Scores are held only if they are to be written.

    Parameters
    ----------
    scores_file, alerts_file
        CSV or JSON Lines by their ending; ``None`` writes none.
    features
        Feature names by profile.
    """

    def __init__(
        self, scores_file: Path | None, alerts_file: Path | None, features: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.tally = Tally()
        self._scores_file, self._alerts_file = scores_file, alerts_file
        self._features = features
        self._parts: dict[tuple[str, str], dict[str, _Parts]] = {}
        self._signals: tuple[str, ...] = ()
        self._alerts: list[Alert] = []

    def add(self, scores: Scores) -> None:
        """Take the scores of one batch; a stream's batches in their order."""
        self.tally.add_scores(scores)
        if self._scores_file is None:
            return
        self._signals = scores.signals
        by_stream = self._parts.setdefault((scores.profile, scores.model_version), {})
        ends = np.cumsum(scores.lengths).tolist()
        begin = 0
        for window, (stream, end) in enumerate(zip(scores.stream_ids, ends, strict=True)):
            parts = by_stream.setdefault(stream, _Parts())
            for name in ("times_ms", "score", "threshold", "verdict", "signal", "feature", "imputed"):
                getattr(parts, name).append(getattr(scores, name)[begin:end])
            parts.partial += [bool(scores.partial[window])] * (end - begin)
            begin = end

    def add_alerts(self, alerts: Sequence[Alert]) -> None:
        """Take alert events; a stream's in their order."""
        self.tally.add_alerts(alerts)
        if self._alerts_file is not None:
            self._alerts += alerts

    @property
    def files(self) -> list[Path]:
        """The files asked for."""
        return [path for path in (self._scores_file, self._alerts_file) if path is not None]

    def write(self) -> None:
        """Write the files asked for, whole or not at all."""
        if self._scores_file is not None:
            with _replacing(self._scores_file) as out:
                _write_rows(out, self._scores_file, SCORE_COLUMNS, self._score_rows())
        if self._alerts_file is not None:
            alerts = sorted(self._alerts, key=lambda a: (a.time_ms, a.stream_id, EVENTS.index(a.event)))
            with _replacing(self._alerts_file) as out:
                if self._alerts_file.suffix == ".csv":
                    _write_rows(out, self._alerts_file, ALERT_COLUMNS, map(_alert_row, alerts))
                else:
                    out.writelines(encode_alert(alert).decode() + "\n" for alert in alerts)

    def _score_rows(self) -> Iterator[tuple[Any, ...]]:
        for (profile, version), by_stream in sorted(self._parts.items()):
            names = self._features[profile]
            for stream in sorted(by_stream):
                parts = by_stream[stream]
                times = np.datetime_as_string(np.concatenate(parts.times_ms).astype("M8[ms]"), timezone="UTC")
                yield from zip(
                    [stream] * len(times),
                    times.tolist(),
                    map(_rounded, np.concatenate(parts.score).tolist()),
                    map(_rounded, np.concatenate(parts.threshold).tolist()),
                    map(VERDICTS.__getitem__, np.concatenate(parts.verdict).tolist()),
                    map(self._signals.__getitem__, np.concatenate(parts.signal).tolist()),
                    [names[at] if at >= 0 else None for at in np.concatenate(parts.feature).tolist()],
                    map(_rounded, np.concatenate(parts.imputed).tolist()),
                    ["partial" if partial else "full" for partial in parts.partial],
                    [profile] * len(times),
                    [version] * len(times),
                    strict=True,
                )


def _rounded(number: float) -> float | None:
    """Three decimals, as decisions are taken; ``None`` for none."""
    return round(number, 3) if np.isfinite(number) else None


def _alert_row(alert: Alert) -> tuple[Any, ...]:
    strongest = alert.features[0] if alert.features else None
    evidence: tuple[Any, ...] = (None,) * 6
    if strongest is not None:
        band = [float(f"{edge:.7g}") for edge in strongest.band]
        observed = None if strongest.observed is None else float(f"{strongest.observed:.7g}")
        usual = None if strongest.usual is None else float(f"{strongest.usual:.7g}")
        evidence = (strongest.name, observed, float(f"{strongest.expected:.7g}"), *band, usual)
    return (
        *(alert.alert_id, alert.event, alert.severity, alert.stream_id, iso_time(alert.time_ms)),
        *(iso_time(alert.onset_ms), _rounded(alert.score), _rounded(alert.peak_score), _rounded(alert.threshold)),
        *(alert.signal, alert.direction, *evidence, alert.state, alert.profile, alert.model_version),
    )


def _write_rows(out: TextIO, path: Path, columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    if path.suffix == ".csv":
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        return
    for row in rows:
        out.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """A file that gets its name when it is complete.

    Raises
    ------
    ConfigurationError
        It cannot be written.
    """
    draft = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "w", encoding="utf-8", newline="") as out:
            yield out
        draft.replace(path)
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be written: {exc.strerror}") from exc
    finally:
        draft.unlink(missing_ok=True)
