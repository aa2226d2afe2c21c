"""Inputs that are hard on detectors, each with what a person on call would expect, through the production scorer.

All of them are streams of one run of one profile: half-hour data, six weeks, the shipped predictor, one false alarm
allowed per stream and week. Each input comes in six forms that differ by their noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from models.synthetic import MONDAY_MS
from pipeline.offline import Offline
from pipeline.profile import Profile
from pipeline.records import VERDICTS, Partition
from pipeline.silence import Silence
from pipeline.sources.recording import RecordedStream

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float64]
INTERVAL_S, DAY, WEEK = 1800, 48, 336  # seconds; observations
LENGTH, FORMS = 6 * WEEK, 6
EVENT = 4 * WEEK + 20  # where it happens, on a Monday morning: a stream has had four weeks to learn what is normal
LATER = EVENT + 9 * DAY + 4
FEW = 3  # observations
SPIKE = 10.0  # in standard deviations of the series
"""Large enough that nobody would call it ordinary."""
T = np.arange(LENGTH)


def noise(rng: np.random.Generator, size: float = 0.2) -> Floats:
    return size * rng.standard_normal(LENGTH)


def daily(rng: np.random.Generator) -> Floats:
    """A process with a day: a wave and its harmonic, noise a fifth of it."""
    phase = 2 * np.pi * (T / DAY + rng.random())
    return 20.0 + np.sin(phase) + 0.4 * np.sin(2 * phase) + noise(rng)


def spiked(x: Floats, at: int, spread: float | None = None) -> Floats:
    out = x.copy()
    out[at] += SPIKE * (np.nanstd(x) if spread is None else spread)
    return out


# --- the inputs -------------------------------------------------------------------------------------------------------


def constant(rng: np.random.Generator) -> Floats:
    return np.full(LENGTH, float(rng.integers(-5, 100)))


def constant_then_not(rng: np.random.Generator) -> Floats:
    return constant(rng) + (T == EVENT)


def quantised(rng: np.random.Generator) -> Floats:
    return np.round(daily(rng) / 0.5) * 0.5


def quantised_spike(rng: np.random.Generator) -> Floats:
    return np.round(spiked(daily(rng), EVENT) / 0.5) * 0.5


def resetting_counter(rng: np.random.Generator) -> Floats:
    """Grows by about 100 with a day's course, and begins anew about twice a week."""
    steps = rng.poisson(100 * (1 + 0.5 * np.sin(2 * np.pi * T / DAY))).astype(float)
    starts = np.cumsum(rng.integers(110, 200, 40))
    out, level = np.empty(LENGTH), 0.0
    for t, step in enumerate(steps):
        level = 0.0 if t in starts else level + step
        out[t] = level
    return out


def dropped_to_zero(rng: np.random.Generator) -> Floats:
    out = daily(rng)
    out[EVENT : EVENT + DAY] = 0.0
    return out


def stuck(rng: np.random.Generator) -> Floats:
    """The last value, an ordinary one, for two days."""
    out = daily(rng)
    out[EVENT : EVENT + 2 * DAY] = out[EVENT - 1]
    return out


def slow_drift(rng: np.random.Generator) -> Floats:
    """Ten standard deviations in ten days, a fiftieth of one per observation, and there it stays."""
    x = daily(rng)
    return x + 10.0 * x.std() * np.clip((T - EVENT) / (10 * DAY), 0.0, 1.0)


def shifted(rng: np.random.Generator) -> Floats:
    """Another level from one observation on, and nine days later a spike above that."""
    x = daily(rng)
    return spiked(x + 6.0 * x.std() * (T >= EVENT), LATER, x.std())


def daylight_saving(rng: np.random.Generator) -> Floats:
    """Everything an hour earlier from one Sunday on: people follow the clock on the wall, event times do not."""
    offset = rng.random()
    clock = T + 2 * (T >= EVENT - 20 - DAY)
    hour = (clock / 2 + 3 * offset) % 24
    return 10.0 + 8.0 / (1 + np.exp(-(hour - 8) * 1.5)) - 8.0 / (1 + np.exp(-(hour - 18) * 1.5)) + noise(rng, 0.4)


def weekly(rng: np.random.Generator) -> Floats:
    """Working hours, quiet weekends."""
    hour = (T / 2) % 24
    works = T // DAY % 7 < 5
    shape = 1 / (1 + np.exp(-(hour - 8) * 1.5)) - 1 / (1 + np.exp(-(hour - 18) * 1.5))
    return 10.0 + 8.0 * shape * works + noise(rng, 0.4)


def bursts(rng: np.random.Generator) -> Floats:
    """Rest, then bursts that fade, every thirty observations or so; sizes vary by half."""
    level, out = 0.0, np.empty(LENGTH)
    for t in range(LENGTH):
        level = 0.7 * level + (rng.random() < 1 / 30) * 10.0 * np.exp(0.4 * rng.standard_normal())
        out[t] = level
    return out + noise(rng)


def burst_of_all_bursts(rng: np.random.Generator) -> Floats:
    out = bursts(rng)
    out[EVENT : EVENT + 10] += 150.0 * 0.7 ** np.arange(10)
    return out


def every_second_missing(rng: np.random.Generator) -> Floats:
    out = daily(rng)
    out[1::2] = np.nan
    return out


def every_second_missing_spike(rng: np.random.Generator) -> Floats:
    out = spiked(daily(rng), EVENT)
    out[1::2] = np.nan
    return out


def unit_change(rng: np.random.Generator) -> Floats:
    """Grams from now on, where it was kilograms; nine days later a spike."""
    x = daily(rng)
    return spiked(x, LATER, x.std()) * np.where(T >= EVENT, 1000.0, 1.0)


def silent(rng: np.random.Generator) -> Floats:
    """Nothing for three days (the observations do not exist); nine days after the silence began, a spike."""
    return spiked(daily(rng), LATER)


def irregular(rng: np.random.Generator) -> Floats:
    """Taken up to 45 % of an interval early or late, one in ten not at all."""
    return daily(rng)


def irregular_spike(rng: np.random.Generator) -> Floats:
    return spiked(daily(rng), EVENT)


def no_work_today(rng: np.random.Generator) -> Floats:
    """A Tuesday like a Sunday."""
    out, quiet = weekly(rng), noise(rng, 0.4)
    day = slice(4 * WEEK + DAY, 4 * WEEK + 2 * DAY)
    out[day] = 10.0 + quiet[day]
    return out


def work_on_a_saturday(rng: np.random.Generator) -> Floats:
    """A Saturday like the Friday before it."""
    out = weekly(rng)
    saturday = 4 * WEEK + 5 * DAY
    out[saturday : saturday + DAY] = out[saturday - DAY : saturday]
    return out


def plain(rng: np.random.Generator) -> Floats:
    return daily(rng)


def plain_spike(rng: np.random.Generator) -> Floats:
    return spiked(daily(rng), EVENT)


def uptime(rng: np.random.Generator) -> Floats:
    """Grows by the same with every observation, without noise."""
    return rng.integers(0, 10_000) + INTERVAL_S * T.astype(float)


def bad_start(rng: np.random.Generator) -> Floats:
    """One of the first twenty values is what no sensor measures; after four weeks a spike, nine days later a shift."""
    x = daily(rng)
    scale = x.std()
    x = spiked(x, EVENT) + 6.0 * scale * (T >= LATER)
    x[rng.integers(0, 20)] = 1000.0 * scale
    return x


def calmed(rng: np.random.Generator) -> Floats:
    """Noise without a day that all but ceases for two days, at its usual level."""
    ceases = (T >= EVENT) & (T < EVENT + 2 * DAY)
    return 20.0 + noise(rng, 1.0) * np.where(ceases, 0.05, 1.0)


INPUTS: tuple[Callable[[np.random.Generator], Floats], ...] = (
    constant, constant_then_not, quantised, quantised_spike, resetting_counter, dropped_to_zero, stuck, slow_drift,
    shifted, daylight_saving, weekly, bursts, burst_of_all_bursts, every_second_missing,
    every_second_missing_spike, unit_change, silent, irregular, irregular_spike, no_work_today, plain, plain_spike,
    uptime, calmed, bad_start, work_on_a_saturday,
)  # fmt: skip
PER_WEEK = 1.0
PROFILE = Profile(topics=["input"], features=["value"], interval_s=INTERVAL_S, alarm_budget="1 per week")  # type: ignore[arg-type]


def times_of(name: str, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which observations exist, and when each was taken, ms."""
    taken = MONDAY_MS + 1000 * INTERVAL_S * T.astype(np.int64)
    if name == "silent":
        return np.flatnonzero((T < EVENT) | (T >= EVENT + 3 * DAY)), taken
    if name.startswith("irregular"):
        taken = taken + (1000 * INTERVAL_S * rng.uniform(-0.45, 0.45, LENGTH)).astype(np.int64)
        return np.flatnonzero((rng.random(LENGTH) > 0.1) | (T == EVENT)), taken
    return np.arange(LENGTH), taken


@dataclass(frozen=True, slots=True)
class Seen:
    """What was said of one stream, by the places of its observations in time."""

    values: Floats
    alarm: npt.NDArray[np.bool_]
    score: Floats
    opened: npt.NDArray[np.bool_]

    def alerts(self, start: int, stop: int) -> int:
        """Alerts opened at observations ``[start, stop)``."""
        return int(self.opened[start:stop].sum())

    def is_found(self, at: int, within: int = FEW) -> bool:
        """Whether one of the observations from ``at`` on is called anomalous."""
        return bool(self.alarm[at : at + within].any())


Run = dict[str, list[Seen]]


@pytest.fixture(scope="module")
def run() -> Run:
    """All inputs through one engine, side by side."""
    made, places, seen = [], {}, {}
    for number, generate in enumerate(INPUTS):
        for form in range(FORMS):
            rng = np.random.default_rng([number, form])
            values, name = generate(rng), f"{generate.__name__}/{form}"
            there, taken = times_of(generate.__name__, rng)
            made.append(
                RecordedStream(
                    name, ("value",), float(INTERVAL_S), taken[there], values[there, None].astype(np.float32)
                )
            )
            places[name] = dict(zip(taken[there].tolist(), there.tolist(), strict=True))
            seen[name] = Seen(values, np.zeros(LENGTH, np.bool_), np.full(LENGTH, np.nan), np.zeros(LENGTH, np.bool_))
    for absorbed in Offline("p", PROFILE).score_streams(made):
        for scores in absorbed.scores:
            names = np.repeat(np.array(scores.stream_ids, object), scores.lengths)
            said = zip(names, scores.times_ms.tolist(), scores.verdict.tolist(), scores.score.tolist(), strict=True)
            for name, time_ms, verdict, score in said:
                seen[name].alarm[places[name][time_ms]] = VERDICTS[verdict] == "anomalous"
                seen[name].score[places[name][time_ms]] = score
        for alert in absorbed.alerts:
            if alert.event == "opened":
                seen[alert.stream_id].opened[places[alert.stream_id][alert.time_ms]] = True
    return {g.__name__: [seen[f"{g.__name__}/{form}"] for form in range(FORMS)] for g in INPUTS}


def alerts(run: Run, name: str, start: int = 0, stop: int = LENGTH) -> list[int]:
    """Of each form, the number of alerts opened at observations ``[start, stop)``."""
    return [seen.alerts(start, stop) for seen in run[name]]


def found(run: Run, name: str, at: int = EVENT, within: int = FEW) -> int:
    """In how many of the six forms an observation from ``at`` on is called anomalous."""
    return sum(seen.is_found(at, within) for seen in run[name])


def budget(start: int = 0, stop: int = LENGTH) -> float:
    """Alerts that the budget allows six streams."""
    return FORMS * PER_WEEK * (stop - start) / WEEK


# --- what is normal, however odd it looks -----------------------------------------------------------------------------


def test_a_constant_series_is_never_anomalous(run):
    """No scale may shrink to zero and turn the last digit into an alarm."""
    assert alerts(run, "constant") == [0] * FORMS
    assert all(float(seen.score.max()) == 0.0 for seen in run["constant"])


AT_THE_EDGE = pytest.mark.xfail(strict=False, reason="36 alerts where 36 are allowed: another rounding may make it 37")


@pytest.mark.parametrize(
    "name",
    ["plain", "quantised", "weekly", pytest.param("bursts", marks=AT_THE_EDGE), "every_second_missing", "irregular"],
)
def test_ordinary_oddities_keep_to_the_budget(run, name):
    """Steps, weekends, bursts, holes and jitter are how some streams are: one alert per week at most."""
    assert sum(alerts(run, name)) <= budget()


def test_bursts_exceed_the_budget_by_a_tenth_at_most(run):
    """Far within the factor that the budget promises, if not within the budget."""
    assert sum(alerts(run, "bursts")) <= 1.1 * budget()


def test_what_grows_for_ever_at_one_pace_is_no_anomaly(run):
    """Every value is a new extreme, and far from the mean of the past: one alert in six weeks at most."""
    assert max(alerts(run, "uptime")) <= 1


def test_counter_resets_stay_within_twice_the_budget(run):
    """Every reset is a fall that no forecast foresees, twice a week: the budget's promise is a factor of two."""
    assert sum(alerts(run, "resetting_counter")) <= 2 * budget()


def test_every_observation_has_a_finite_score(run):
    """Whatever came in: a missing value has no score, every other one has."""
    for name, forms in run.items():
        for seen in forms:
            if name not in ("silent", "irregular", "irregular_spike"):
                np.testing.assert_array_equal(np.isfinite(seen.score), np.isfinite(seen.values), err_msg=name)
            assert not np.isinf(seen.score).any(), name


@pytest.mark.xfail(reason="9 of 56: a fall from a height that was never reached before counts as a new extreme")
def test_a_counter_that_resets_again_and_again_has_resets_for_normal(run):
    """The first three may surprise; of later ones no more than one in ten is said."""
    later = [np.flatnonzero(np.diff(seen.values) < 0)[3:] + 1 for seen in run["resetting_counter"]]
    said = sum(
        seen.alerts(at, at + 2) for seen, resets in zip(run["resetting_counter"], later, strict=True) for at in resets
    )
    assert said <= sum(map(len, later)) / 10


WEEKENDS = [week * WEEK + 5 * DAY for week in range(2, 6)]


def test_quiet_weekends_are_normal_from_the_third_on(run):
    """A detector of working hours that pages every Saturday is turned off on the second one."""
    assert sum(sum(alerts(run, "weekly", at, at + 2 * DAY)) for at in WEEKENDS) <= budget(0, len(WEEKENDS) * 2 * DAY)


@pytest.mark.xfail(
    strict=True, reason="on the next day the shape is as wrong as on the first: one of six says so again"
)
def test_daylight_saving_is_said_once_at_most(run):
    """The day moves by an hour against event time: one alert is understood, two are a nuisance."""
    change = EVENT - 20 - DAY
    assert max(alerts(run, "daylight_saving", change, change + 3 * DAY)) <= 1


def test_daylight_saving_is_said_no_more_than_once_beyond_the_budget(run):
    """What the budget allows anyway may come on top of the one alert that is understood."""
    change = EVENT - 20 - DAY
    assert sum(alerts(run, "daylight_saving", change, change + 3 * DAY)) <= FORMS + budget(0, 3 * DAY)


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["plain_spike", "quantised_spike", "constant_then_not", "burst_of_all_bursts", "every_second_missing_spike",
     "irregular_spike", "dropped_to_zero", "shifted", "unit_change"],
)  # fmt: skip
def test_what_leaps_to_the_eye_is_found_at_once(run, name):
    """Six of six forms, within three observations."""
    assert found(run, name) == FORMS


def test_a_bad_start_does_not_hide_what_comes_weeks_later(run):
    """Neither the spike nor the shift, which is smaller than the spike."""
    assert found(run, "bad_start") == FORMS
    assert found(run, "bad_start", LATER) == FORMS


@pytest.mark.parametrize(("wildness", "first"), [(100.0, 0), (1000.0, 8)])
def test_a_bad_start_of_one_feature_hides_no_later_spike_of_an_entity(wildness, first):
    """One of the first hundred values of one of six features is wild; four weeks later the same feature leaps."""
    made, hits, first_ms = [], set(), MONDAY_MS
    for form in range(FORMS):
        rng = np.random.default_rng([99, form])
        x = np.stack([daily(rng) for _ in range(6)], 1)
        scale = x[:, 0].std()
        x[EVENT : EVENT + FEW, 0] += SPIKE * scale
        x[rng.integers(first, 100), 0] = wildness * scale
        taken = first_ms + 1000 * INTERVAL_S * T.astype(np.int64)
        made.append(RecordedStream(f"{form}", tuple("abcdef"), float(INTERVAL_S), taken, x.astype(np.float32)))
    profile = Profile(topics=["input"], features=list("abcdef"), interval_s=INTERVAL_S, evidence="jump")  # type: ignore[arg-type]
    begin, end = (first_ms + 1000 * INTERVAL_S * at for at in (EVENT, EVENT + FEW + 1))
    for absorbed in Offline("p", profile).score_streams(made):
        hits |= {alert.stream_id for alert in absorbed.alerts if begin <= alert.time_ms < end}
    assert hits == {stream.name for stream in made}


def test_a_stuck_sensor_is_found_within_a_day(run):
    """It reports an ordinary value, only not when it should."""
    assert found(run, "stuck", EVENT + 1, DAY) == FORMS


def test_a_day_without_work_is_found_that_day(run):
    """Every value is an ordinary one, on the wrong day; it does not make work on the next Tuesday an anomaly."""
    day = 4 * WEEK + DAY
    assert found(run, "no_work_today", day, DAY) == FORMS
    assert sum(alerts(run, "no_work_today", day + WEEK, day + WEEK + DAY)) <= FORMS // 3


def test_work_on_a_saturday_is_found_that_day_and_expects_nothing_of_the_next(run):
    """Every value is an ordinary one of a workday, and one day is no habit: a week later one of six is wondered at."""
    saturday = 4 * WEEK + 5 * DAY
    assert found(run, "work_on_a_saturday", saturday, DAY) == FORMS
    assert sum(alerts(run, "work_on_a_saturday", saturday + WEEK, saturday + WEEK + DAY)) <= 1


def test_a_stream_that_calms_down_is_found_within_a_day(run):
    """Every value is an ordinary one and every forecast right: that nothing moves any more is the fault."""
    assert found(run, "calmed", EVENT, DAY) == FORMS


def test_a_slow_drift_is_said_before_half_of_it_is_done_and_not_at_every_step(run):
    """Ten standard deviations in ten days: said within five, at most once a day."""
    assert found(run, "slow_drift", EVENT, 5 * DAY) == FORMS
    assert max(alerts(run, "slow_drift", EVENT, EVENT + 10 * DAY)) <= 10


# --- once, then adapted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shifted", "unit_change"])
def test_a_change_that_stays_alarms_once_and_is_the_new_normal(run, name):
    """No second alert on the first day, and no more than the budget in the week after it."""
    assert max(alerts(run, name, EVENT, EVENT + DAY)) <= 1
    assert sum(alerts(run, name, EVENT + DAY, EVENT + DAY + WEEK)) <= budget(0, WEEK)


@pytest.mark.parametrize("name", ["shifted", "unit_change", "silent"])
def test_nothing_blinds_a_stream_for_good(run, name):
    """A spike nine days after a shift, a new unit or a silence is found in five of six forms at least."""
    assert found(run, name, LATER) >= FORMS - 1


def test_coming_back_from_silence_is_no_anomaly(run):
    """That it was silent is the monitor's to say; its first day back holds ordinary values.

    What the network remembers is three days old then: one stream in three may be wondered at, none twice.
    """
    back = EVENT + 3 * DAY
    assert sum(alerts(run, "silent", back, back + DAY)) <= FORMS // 3
    assert max(alerts(run, "silent", back, back + DAY)) <= 1


def test_silence_is_said_once_and_ended_once():
    """By the monitor beside the fold, since no record tells of a record that does not come."""
    taken = MONDAY_MS + 1000 * INTERVAL_S * np.arange(10 * DAY)
    there = (np.arange(10 * DAY) < 5 * DAY) | (np.arange(10 * DAY) >= 8 * DAY)
    watch = Silence(5.0, 300.0, {"p": PROFILE.idle_reset_s}, 10, taken[0] / 1000)
    said = []
    for offset, (time_ms, is_there) in enumerate(zip(taken.tolist(), there.tolist(), strict=True)):
        now = time_ms / 1000
        if is_there and (event := watch.hear("p", "s", Partition("input", 0), offset, time_ms, 0.0, now)) is not None:
            said.append((event.event, time_ms))
        said += [(event.event, time_ms) for event in watch.check(now, time_ms)]
    (opened, at), (resolved, until) = said
    assert (opened, resolved) == ("opened", "resolved")
    assert 0 <= at - taken[5 * DAY] <= 1000 * INTERVAL_S * 6
    assert until == taken[8 * DAY]


@pytest.mark.parametrize("name", ["plain_spike", "dropped_to_zero"])
def test_an_event_has_no_echo_a_day_later(run, name):
    """The same hour of the next day is ordinary again (or back to normal): one fault, one alert."""
    assert sum(alerts(run, name, EVENT + DAY - FEW, EVENT + DAY + FEW)) <= 1
