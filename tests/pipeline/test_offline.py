"""Straight through the engine: the same scores as the worker's, side by side, from fresh rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models import tail
from models.step import Scorer
from pipeline.errors import ConfigurationError
from pipeline.offline import RECORDING, Offline, in_rounds
from pipeline.records import ANOMALOUS, MISSING, NORMAL, OPENED, RESOLVED, VERDICTS, WARMING_UP, Alert
from pipeline.sources.recording import RecordedStream
from tests.builders import INTERVAL_MS, START_MS, World, make_profile, make_series, tiny_weights

Scored = dict[tuple[str, int], float]


def make_stream(name: str, seed: int, length: int = 220, begin: int = 0) -> RecordedStream:
    times_ms = START_MS + INTERVAL_MS * np.arange(begin, length)
    return RecordedStream(name, ("value",), 60.0, times_ms, make_series(seed, length)[begin:])


def make_offline(**changes: object) -> Offline:
    return Offline("p", make_profile(), tiny_weights(), **changes)  # type: ignore[arg-type]


def scored(offline: Offline, streams: list[RecordedStream], **options: int) -> tuple[Scored, list[Alert]]:
    scores: Scored = {}
    alerts: list[Alert] = []
    for absorbed in offline.score_streams(streams, **options):
        for batch in absorbed.scores:
            names = np.repeat(np.array(batch.stream_ids, object), batch.lengths)
            scores |= dict(zip(zip(names, batch.times_ms.tolist(), strict=True), batch.score.tolist(), strict=True))
        alerts += absorbed.alerts
    return scores, alerts


def test_offline_scores_are_those_of_a_worker() -> None:
    """What is tried offline must be what production would do: one engine, one fold."""
    world = World()
    streams = [make_stream(f"s{seed}", seed) for seed in range(3)]
    for stream in streams:
        world.produce(stream.name, stream.values)
    worker = world.worker()
    world.run(worker)
    found, alerts = scored(make_offline(), streams)
    expected = world.output()
    assert found.keys() == expected.scores.keys()
    np.testing.assert_allclose(
        [found[place] for place in sorted(found)], [expected.scores[place] for place in sorted(found)], atol=1e-3
    )
    assert {(a.stream_id, a.event, a.time_ms) for a in alerts} == {
        (a.stream_id, a.event, a.time_ms) for a in expected.alerts
    }


@pytest.mark.parametrize("length", [16, 64])
def test_windows_of_slow_streams_are_no_silences(length: int) -> None:
    """Invariant 1: 64 daily values span nine weeks, longer than a stream may be silent before it begins anew."""
    day_ms = 86_400_000
    stream = make_stream("s", 0)
    stream = replace(stream, interval_s=86_400.0, times_ms=START_MS + day_ms * np.arange(len(stream)))
    profile = make_profile(interval_s=86_400.0, idle_reset_s=20 * 86_400.0)
    one, several = (
        scored(Offline("p", profile, tiny_weights()), [stream], length=cut)[0].values() for cut in (1, length)
    )
    np.testing.assert_allclose(list(several), list(one), atol=1e-3)
    assert max(one) > 0


def test_neighbours_and_batch_sizes_change_nothing() -> None:
    """Invariants 1 and 4: a stream alone in small batches scores as among others in one batch, positions included."""
    streams = [make_stream(f"s{seed}", seed, 220 - 30 * seed) for seed in range(4)]
    together, alerts = scored(make_offline(), streams)
    alone, same_alerts = scored(make_offline(), streams[:1], max_batch_observations=64)
    mine = {place: score for place, score in together.items() if place[0] == "s0"}
    assert mine.keys() == alone.keys()
    np.testing.assert_allclose(list(mine.values()), [alone[place] for place in mine], atol=1e-3)
    assert [a.alert_id for a in alerts if a.stream_id == "s0"] == [a.alert_id for a in same_alerts]


def test_rounds_hold_every_observation_once_and_keep_to_their_size() -> None:
    """Bounded batches lose nothing at their borders, however unequal the streams are."""
    streams = [make_stream(f"s{length}", 0, length) for length in (1, 63, 64, 65, 300)]
    times: dict[str, list[int]] = {stream.name: [] for stream in streams}
    for windows in in_rounds(streams, 16, max_batch_observations=100):
        assert len(windows.times_ms) <= 100
        assert windows.lengths.max() <= 16
        for name, part in zip(
            windows.stream_ids, np.split(windows.times_ms, np.cumsum(windows.lengths)[:-1]), strict=True
        ):
            times[name] += part.tolist()
    assert times == {stream.name: stream.times_ms.tolist() for stream in streams}


def test_detail_shows_what_stands_behind_every_observation() -> None:
    """To ask "why no alert" one needs the evidence of observations that raised none."""
    stream = make_stream("s", 1)
    [absorbed] = list(make_offline(detail=True).score_streams([stream]))
    [scores], [detail] = absorbed.scores, absorbed.details
    assert detail.evidence["observed"].shape == (len(stream), 1)
    np.testing.assert_array_equal(detail.evidence["observed"], stream.values)
    assert detail.trace["level"].shape == (len(stream), 1)
    assert detail.trace["controller"].shape == (len(stream),)
    opened = scores.times_ms[detail.event == 1].tolist()
    assert opened == [alert.time_ms for alert in absorbed.alerts if alert.event == "opened"]
    assert opened


def test_without_detail_none_is_kept() -> None:
    """Evidence of everything costs several times the scores; only who asks pays."""
    [absorbed] = list(make_offline().score_streams([make_stream("s", 1, 40)]))
    assert absorbed.details == []


def test_history_warms_up_without_output() -> None:
    """A stream whose past was absorbed silently scores as if it had been there all along."""
    stream = make_stream("s", 2)
    whole, _ = scored(make_offline(), [stream])
    past, rest = (
        RecordedStream("s", ("value",), 60.0, stream.times_ms[part], stream.values[part])
        for part in (slice(0, 150), slice(150, None))
    )
    offline = make_offline()
    for absorbed in offline.warm([past]):
        assert absorbed.scores == []
        assert absorbed.alerts == []
    found, _ = scored(offline, [rest])
    assert list(found) == [("s", time_ms) for time_ms in rest.times_ms.tolist()]
    np.testing.assert_allclose(list(found.values()), [whole[place] for place in found], atol=1e-3)


def test_too_many_streams_are_refused() -> None:
    """Nothing is saved here, so nothing can be evicted: a table that is full must say so."""
    streams = [make_stream(f"s{number}", number, 4) for number in range(5)]
    with pytest.raises(ConfigurationError, match="max_resident_streams"):
        scored(make_offline(max_streams=3), streams)


def test_positions_are_of_the_recording() -> None:
    """An alert of a recording cannot be taken for one of a topic."""
    [absorbed] = list(make_offline().score_streams([make_stream("s", 1)]))
    assert {scores.partition for scores in absorbed.scores} == {RECORDING}


def test_a_gap_ends_a_stream_by_the_version_not_by_the_profile() -> None:
    """Rule 11: a replay under an older version, with another idle_reset_s, folds a long gap as it was folded then."""
    profile, values = make_profile(), make_series(0, 240)
    times_ms = START_MS + INTERVAL_MS * np.arange(240, dtype=np.int64)
    times_ms[200:] += 500 * INTERVAL_MS
    stream = RecordedStream("s", ("value",), INTERVAL_MS / 1000, times_ms, values)
    verdicts = {}
    for idle_reset_s in (profile.idle_reset_s, 3600.0):
        scorer = Scorer(tiny_weights(), replace(profile.fold(), idle_reset_s=idle_reset_s))
        [absorbed] = Offline("p", profile, scorer).score_streams([stream])
        verdicts[idle_reset_s] = {VERDICTS[number] for scores in absorbed.scores for number in scores.verdict[200:]}
    assert "warming_up" not in verdicts[profile.idle_reset_s]
    assert verdicts[3600.0] == {"warming_up"}


def test_verdicts_are_numbered_as_the_fold_numbers_them() -> None:
    """Their numbers pass from tensors to the scores topic as they are; only there do they get names."""
    assert VERDICTS == ("normal", "anomalous", "warming_up", "missing")
    assert (NORMAL, ANOMALOUS, WARMING_UP, MISSING) == (tail.NORMAL, tail.ANOMALOUS, tail.WARMING_UP, tail.MISSING)
    assert (OPENED, RESOLVED) == (tail.OPENED, tail.RESOLVED)
