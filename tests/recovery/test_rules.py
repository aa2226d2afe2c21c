"""The rules of the commit, save and take-over protocol that random faults reach too seldom, one test each."""

from __future__ import annotations

import json
from itertools import count

import numpy as np
import pytest

from pipeline.health import Health
from pipeline.keeper import SWEEP_POLL_S
from pipeline.metrics import Metrics
from pipeline.partition import HISTORY_KEPT, from_offset, to_offset, version_at, with_version
from pipeline.records import WARMING_UP, Committed, Partition
from pipeline.sources.base import CommittedOffset
from pipeline.state.codec import decode_headers
from pipeline.wire import encode_control, encode_packed
from pipeline.worker import Worker
from pipeline.worker_command import work
from tests.builders import (
    GROUP,
    INTERVAL_MS,
    START_MS,
    VERSION_A,
    VERSION_B,
    World,
    assert_same_output,
    make_pace,
    make_profile,
    make_series,
)
from tests.fakes import AwayStore, GatedStore

pytestmark = pytest.mark.slow

ONE = Partition("input", 0)
EAGER_SAVES = make_pace(save_interval_s=0.1)


def _world(**settings: object) -> World:
    return World(**{"partitions": 1, "pace": EAGER_SAVES, **settings})  # type: ignore[arg-type]


def _finished(world: World) -> Worker:
    worker = world.worker()
    world.run(worker)
    return worker


def _expected(fill: object, **settings: object) -> World:
    world = _world(**settings)
    fill(world)  # type: ignore[operator]
    _finished(world).stop()
    return world


def test_latest_start_is_committed_before_the_first_record() -> None:
    """A group that starts at the end and dies at once goes on from there, and skips nothing."""
    world = _world(pace=make_pace(start="latest"))
    world.produce("old", make_series(0, 8))
    worker = world.worker()
    while world.broker.committed(GROUP, ONE) is None:
        worker.step()
    world.crash(worker)
    world.produce("new", make_series(1, 8))
    world.run(world.worker())
    assert {stream for stream, _ in world.output().scores} == {"new"}


def test_metadata_keeps_the_last_changes_within_the_brokers_limit() -> None:
    """Above 4096 bytes the producer dies (rule 10)."""
    committed = Committed(0, "i" * 16, 0, ((0, "0" * 12),))
    for number in range(100):
        committed = with_version(committed, 10**15 + number, f"{number:012x}")
    written = to_offset(committed)
    assert len(written.metadata.encode()) < 4096
    assert len(committed.history) == HISTORY_KEPT
    assert from_offset(written) == committed
    assert version_at(committed, 10**15 + 99) == f"{99:012x}"
    assert version_at(committed, 5) is None


def _swap_run(crash_after_steps: int | None, hidden: str = "carry", swap_at: int = 30) -> World:
    """``swap_at`` of 60 windows under version A, then the pointer moves to B; maybe a crash some steps later."""
    world = _world(hidden=hidden)
    series = np.concatenate([make_series(3, 120), make_series(4, 120)])
    world.produce("s", series[: 4 * swap_at])
    worker = _finished(world)
    world.target = VERSION_B
    world.clock.advance(5)
    if crash_after_steps is None:
        for _ in range(3):
            worker.step()  # nothing new: the swap is at offset swap_at
    world.produce("s", series[4 * swap_at :], start_ms=START_MS + 4 * swap_at * INTERVAL_MS)
    if crash_after_steps is not None:
        for _ in range(crash_after_steps):
            worker.step()
        world.crash(worker)
        worker = world.worker()
    world.run(worker)
    return world


def _swapped_at(world: World) -> int:
    found = world.broker.committed(GROUP, ONE)
    assert found is not None
    return int(json.loads(found.metadata)["history"][-1][0])


@pytest.mark.parametrize("crash_after_steps", [0, 1, 2, 3, 5])
def test_swap_then_crash_ends_like_an_undisturbed_run_with_the_same_swap_offset(crash_after_steps: int) -> None:
    """Rules 10 to 12: before, during and after the next commit."""
    crashed = _swap_run(crash_after_steps)
    undisturbed = _swap_run(None, swap_at=_swapped_at(crashed)).output()
    assert_same_output(crashed.output(), undisturbed)
    assert set(undisturbed.versions.values()) == {VERSION_A, VERSION_B}
    assert crashed.output().versions == undisturbed.versions


def test_wiped_store_is_replayed_across_a_swap_under_the_recorded_versions() -> None:
    """Rule 11: below c the version comes from the history, not from the worker."""
    more = make_series(5, 40)
    outputs = []
    for is_wiped in (False, True):
        world = _swap_run(None)
        world.crash(*world.workers)
        if is_wiped:
            world.store.wipe()
        world.produce("s", more, start_ms=START_MS + 240 * INTERVAL_MS)
        world.run(world.worker())
        outputs.append(world.output())
    assert_same_output(outputs[1], outputs[0])


def test_a_version_that_this_release_refuses_ends_with_its_rows_and_says_so() -> None:
    """A new release may not read the old one's rows (docs/versions.md): streams begin anew, and nothing else breaks."""
    world = _world()
    world.produce("s", make_series(3, 160))
    _finished(world).stop()
    world.seeds, world.target = {VERSION_B: 1}, VERSION_B
    world.produce("s", make_series(4, 160), start_ms=START_MS + 160 * INTERVAL_MS)
    _finished(world).stop()
    found = world.output()
    assert len(found.scores) == 320
    assert found.duplicates == 0
    late = [place for place in sorted(found.scores) if place[1] >= START_MS + 160 * INTERVAL_MS]
    assert {found.versions[place] for place in late} == {VERSION_B}
    assert [found.verdicts[place] for place in late[:100]] == [WARMING_UP] * 100
    assert WARMING_UP not in {found.verdicts[place] for place in late[100:]}
    assert all(found.partial[place] for place in late[:100])
    assert not found.partial[late[-1]]


def test_records_of_a_refused_version_that_must_be_replayed_are_said_aloud() -> None:
    """Rule 22: what was committed and is not in a saved row cannot be folded again without its version."""
    world = _world()
    world.produce("s", make_series(3, 160))
    world.crash(_finished(world))
    world.store.wipe()
    world.seeds, world.target = {VERSION_B: 1}, VERSION_B
    world.produce("s", make_series(4, 160), start_ms=START_MS + 160 * INTERVAL_MS)
    _finished(world).stop()
    found = world.output()
    assert len(found.scores) == 320
    late = [found.partial[place] for place in sorted(found.scores) if place[1] >= START_MS + 160 * INTERVAL_MS]
    assert all(late[:100])
    assert not late[-1], "warmed up again"


def test_hidden_state_choice_on_a_swap_is_applied() -> None:
    """Carry and reset differ, so the setting does something (rule 12)."""
    carried, reset = _swap_run(None, "carry").output(), _swap_run(None, "reset").output()
    assert carried.scores != reset.scores


def test_a_version_that_no_partition_has_any_more_leaves_the_memory() -> None:
    """A worker that stands by while versions come and go would fill a GPU with tables of nobody's rows."""
    world = _world()
    world.produce("s", make_series(0, 40))
    worker = _finished(world)
    world.broker.rebalance(GROUP)
    world.target = VERSION_B
    for _ in range(10):  # dropped with everything else, and under B when its next record comes
        worker.step()
        world.clock.advance(1)
    world.produce("s", make_series(1, 40), start_ms=START_MS + 100 * INTERVAL_MS)
    world.run(worker)
    assert world.rows(worker).version == VERSION_B


def test_stream_first_seen_just_before_a_crash_is_not_skipped() -> None:
    """Rule 15: W is the least offset not in a saved row, not the least position of saved rows."""

    def fill(world: World) -> None:
        world.produce("old", make_series(0, 60))
        world.produce("young", make_series(1, 4), start_ms=START_MS)
        world.produce("old", make_series(2, 60), start_ms=START_MS + 60 * INTERVAL_MS)
        world.produce("young", make_series(3, 4), start_ms=START_MS + 4 * INTERVAL_MS)

    world = _world(pace=make_pace(max_poll_records=2, save_interval_s=1e6))
    fill(world)
    worker = world.worker()
    for _ in range(12):
        worker.step()
    world.crash(worker)
    world.run(world.worker())
    assert_same_output(world.output(), _expected(fill).output())


def test_long_silence_in_event_time_starts_a_fresh_row_whoever_holds_it() -> None:
    """Rule 16: a stream ends by its own record times; a restart in between changes nothing."""
    profile = make_profile(idle_reset_s=3600)

    def fill(world: World) -> None:
        world.produce("s", make_series(0, 130))
        world.produce("s", make_series(0, 40), start_ms=START_MS + 500 * INTERVAL_MS)

    expected = _expected(fill, profile=profile).output()
    after = [v for (_, time), v in sorted(expected.verdicts.items()) if time >= START_MS + 500 * INTERVAL_MS]
    assert set(after) == {2}, "a fresh row warms up again"
    world = _world(profile=profile)
    world.produce("s", make_series(0, 130))
    _finished(world).stop()
    world.produce("s", make_series(0, 40), start_ms=START_MS + 500 * INTERVAL_MS)
    world.run(world.worker())
    assert_same_output(world.output(), expected)


def test_streams_that_ended_long_ago_are_deleted_and_active_ones_kept() -> None:
    """Rule 16: memory is bounded by record time and wall time, never by Redis (invariant 7)."""
    world = _world(profile=make_profile(idle_reset_s=3600))
    world.produce("ended", make_series(0, 8))
    world.produce("active", make_series(1, 8), start_ms=START_MS + 1000 * INTERVAL_MS)
    worker = _finished(world)
    world.clock.advance(1001 * 60)
    world.produce("active", make_series(2, 8), start_ms=START_MS + 1010 * INTERVAL_MS)
    world.run(worker)
    for _ in range(5):
        worker.step()
        world.clock.advance(61)
    worker.stop()
    key = world.store.keys(GROUP)[0]
    assert set(world.store.scan(key, 0, 100)[1]) == {"active"}


@pytest.mark.parametrize(("returns", "kept"), [(True, {"back", "other"}), (False, {"other"})])
def test_a_stream_that_returns_before_its_row_is_deleted_keeps_it(returns: bool, kept: set[str]) -> None:
    """Rule 16: the sweep says what may be deleted at the next commit, and who has come back by then is not over."""
    world = _world(profile=make_profile(idle_reset_s=3600), pace=make_pace(commit_interval_s=2 * SWEEP_POLL_S))
    worker = world.worker()

    def commit() -> None:
        world.clock.advance(2 * SWEEP_POLL_S)
        worker.step()
        assert worker.keeper.drain(worker.partitions, 5.0)  # the clock jumps, the saving thread does not

    world.produce("back", make_series(0, 8))
    while ONE not in worker.partitions or worker.partitions[ONE].next < 2:
        worker.step()
    commit()
    world.clock.advance(1001 * 60)
    commit()
    world.produce("other", make_series(1, 8), start_ms=START_MS + 1000 * INTERVAL_MS)
    world.clock.advance(SWEEP_POLL_S)
    worker.step()  # the sweep finds "back", and the commit is not due
    if returns:
        world.produce("back", make_series(2, 8), start_ms=START_MS + 1001 * INTERVAL_MS)
        worker.step()
    assert set(_saved(world)) == {"back"}
    commit()
    worker.stop()
    assert set(_saved(world)) == kept


def _swept_after_an_alert(minutes: int) -> tuple[World, Worker]:
    """``s``, of a profile that takes an hour for the end of a stream, fell silent with an open alert so long ago."""
    world = _world(profile=make_profile(idle_reset_s=3600))
    values = make_series(0, 140, spikes=0)
    values[135:] += 30.0
    world.produce("s", values)
    worker = _finished(world)
    world.clock.advance((minutes + 1) * 60)
    world.produce("other", make_series(1, 8), start_ms=START_MS + minutes * INTERVAL_MS)
    world.run(worker)
    for _ in range(5):
        worker.step()
        assert worker.keeper.drain(worker.partitions, 5.0)  # the clock jumps, the saving thread does not
        world.clock.advance(61)
    return world, worker


def test_an_alert_of_a_stream_that_ended_is_resolved_when_it_returns() -> None:
    """Rule 16: whether a sweep came by in between changes no output."""
    world, worker = _swept_after_an_alert(1000)
    world.produce("s", make_series(2, 8), start_ms=START_MS + 1010 * INTERVAL_MS)
    world.run(worker)
    worker.stop()
    assert [alert.event for alert in world.output().alerts if alert.event != "updated"] == ["opened", "resolved"]


def test_a_stream_that_ended_with_an_open_alert_is_deleted_in_the_end() -> None:
    """Invariant 7: containers that die in an incident never come back, and their names are new each time."""
    world, worker = _swept_after_an_alert(2000)
    worker.stop()
    assert set(world.store.scan(world.store.keys(GROUP)[0], 0, 100)[1]) == {"other"}


def test_a_forgotten_row_is_not_evicted_before_the_store_has_deleted_it() -> None:
    """Else the stream's next record would find the past that it was told to forget."""
    store = GatedStore()
    world = _world(store=store)
    world.produce("s", make_series(0, 8))
    worker = _finished(world)
    world.send("s", encode_control("s", "forget"), START_MS + 8 * INTERVAL_MS)
    assert worker.keeper.drain(worker.partitions, 5.0)
    store.shut()
    world.run(worker)
    rows = world.rows(worker)
    slot = rows.slots_of[ONE]["s"]
    assert set(_saved(world)) == {"s"}
    assert rows.in_flight[slot] > 0
    store.let(1000)
    assert worker.keeper.drain(worker.partitions, 5.0)
    assert not _saved(world)
    assert rows.in_flight[slot] == 0


def test_record_times_that_run_back_end_no_stream_however_records_are_cut() -> None:
    """Rule 16: one old record in between (a clock at 1970, a gateway that sends old data) is late, and that is all."""

    def fill(world: World) -> None:
        world.produce("s", make_series(0, 120))
        world.send("s", encode_packed("s", np.array([0]), make_series(2, 1)), timestamp_ms=0)
        world.produce("s", make_series(1, 8), start_ms=START_MS + 120 * INTERVAL_MS)

    cut = make_pace(max_poll_records=1)
    found, expected = _expected(fill).output(), _expected(fill, pace=cut).output()
    assert_same_output(found, expected)
    last = START_MS + 127 * INTERVAL_MS
    assert found.verdicts["s", last] != WARMING_UP


def test_records_gone_from_the_log_are_said_aloud() -> None:
    """Rule 22: state lost and retention past W: outputs are partial until the stream has warmed up again."""
    world = _world()
    world.produce("s", make_series(0, 400))
    _finished(world).stop()
    world.store.wipe()
    world.broker.truncate(ONE, 60)
    world.produce("s", make_series(1, 100), start_ms=START_MS + 400 * INTERVAL_MS)
    successor = world.worker()
    world.run(successor)
    successor.stop()
    found = world.broker.committed(GROUP, ONE)
    assert found is not None
    assert json.loads(found.metadata)["inexact_from"] == 60
    late = [partial for (_, time), partial in world.output().partial.items() if time >= START_MS + 400 * INTERVAL_MS]
    assert not any(late), "forty windows were left below c: the stream has warmed up"
    world.store.wipe()
    world.broker.truncate(ONE, 124)
    world.produce("s", make_series(2, 8), start_ms=START_MS + 500 * INTERVAL_MS)
    world.run(world.worker())
    last = [partial for (_, time), partial in world.output().partial.items() if time >= START_MS + 500 * INTERVAL_MS]
    assert all(last)


def test_offsets_moved_back_by_hand_begin_a_new_incarnation() -> None:
    """Rule 23: rows beyond c cannot be folded twice; they are rebuilt from the log."""
    world = _world()
    world.produce("s", make_series(0, 80))
    _finished(world).stop()
    before = world.broker.committed(GROUP, ONE)
    assert before is not None
    world.broker.move_offset(GROUP, ONE, CommittedOffset(10, before.metadata))
    world.run(world.worker())
    after = world.broker.committed(GROUP, ONE)
    assert after is not None
    assert after.offset == before.offset
    assert json.loads(after.metadata)["incarnation"] != json.loads(before.metadata)["incarnation"]
    assert world.output().duplicates == 40, "ten windows stay, ten are scored again, as the operator asked"


def test_offsets_moved_back_by_less_than_what_is_saved_begin_a_new_incarnation() -> None:
    """Rule 23: W lies below c, but a row does not: reading c again for ever would be the end of the partition."""
    few = make_pace(max_poll_records=8, commit_interval_s=0.05, min_images_per_commit=1)
    world = _world(pace=few)  # as where thousands of streams wait to be saved
    for at in range(0, 160, 4):
        for number in range(8):
            world.produce(f"s{number}", make_series(number, 160)[at : at + 4], start_ms=START_MS + at * INTERVAL_MS)
    worker = world.worker()
    for _ in range(14):
        worker.step()
    world.crash(worker)
    worker.abandon()
    (key,) = world.store.keys(GROUP)
    watermark = world.store._states[key].watermark
    saved = decode_headers(list(_saved(world).values()))["position"].max()
    before = world.broker.committed(GROUP, ONE)
    assert before is not None
    assert watermark is not None
    assert watermark < saved - 1
    world.broker.move_offset(GROUP, ONE, CommittedOffset(int(saved) - 1, before.metadata))
    world.run(world.worker())
    after = world.broker.committed(GROUP, ONE)
    assert after is not None
    assert json.loads(after.metadata)["incarnation"] != json.loads(before.metadata)["incarnation"]
    assert len(world.output().scores) == 8 * 160


def test_a_log_that_lost_its_end_is_said_and_goes_on_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """Records written after the loss have offsets below c: waiting for c would skip them without a word."""
    world = _world()
    world.produce("s", make_series(0, 160))
    _finished(world).stop()
    world.broker.cut(ONE, 30)
    worker = world.worker()
    for _ in range(3):
        worker.step()
    later = START_MS + 500 * INTERVAL_MS
    world.produce("s", make_series(1, 80), start_ms=later)
    world.run(worker)
    found = world.output()
    assert len([time for _, time in found.scores if time >= later]) == 80
    assert found.partial["s", later]
    assert "the log ends at 30, before the committed offset 40" in caplog.text


def test_offset_without_our_metadata_is_rebuilt_from_the_log_start() -> None:
    """What kafka-consumer-groups writes has no metadata: state is made anew, not guessed."""
    world = _world()
    world.produce("s", make_series(0, 80))
    world.broker.move_offset(GROUP, ONE, CommittedOffset(10, ""))
    world.run(world.worker())
    scored = world.output().scores
    assert min(time for _, time in scored) == START_MS + 40 * INTERVAL_MS
    assert len(scored) == 40


def test_reset_record_starts_the_stream_afresh_for_every_replay() -> None:
    """A reset is a record in the stream's own topic, so its place is the same for all."""

    def fill(world: World) -> None:
        world.produce("s", make_series(0, 130))
        world.send("s", encode_control("s", "reset"))
        world.produce("s", make_series(1, 30), start_ms=START_MS + 130 * INTERVAL_MS)

    expected = _expected(fill).output()
    assert [v for (_, t), v in sorted(expected.verdicts.items()) if t >= START_MS + 130 * INTERVAL_MS] == [2] * 30
    world = _world()
    world.produce("s", make_series(0, 130))
    world.send("s", encode_control("s", "reset"))
    _finished(world).stop()
    world.store.wipe()
    world.produce("s", make_series(1, 30), start_ms=START_MS + 130 * INTERVAL_MS)
    world.run(world.worker())
    assert_same_output(world.output(), expected)


def test_alert_that_is_open_when_its_stream_begins_anew_is_resolved() -> None:
    """Nobody would ever close it: neither a reset, nor a forget, nor a long silence leaves an alert behind."""
    for control in ("reset", "forget", None):
        world = _world(profile=make_profile(idle_reset_s=36000))
        values = make_series(0, 140, spikes=0)
        values[135:] += 30.0
        world.produce("s", values)
        if control is not None:
            world.send("s", encode_control("s", control), START_MS + 140 * INTERVAL_MS)
        world.produce("s", make_series(1, 8), start_ms=START_MS + 2000 * INTERVAL_MS)
        _finished(world).stop()
        events = [(alert.alert_id, alert.event) for alert in world.output().alerts]
        assert [event for _, event in events if event != "updated"] == ["opened", "resolved"]
        assert len({alert for alert, _ in events}) == 1


@pytest.mark.parametrize("is_one_batch", [True, False])
@pytest.mark.parametrize("control", ["reset", "forget", None])
def test_a_new_beginning_resolves_an_alert_with_its_peak_and_severity(control: str | None, is_one_batch: bool) -> None:
    """A reader that keeps the latest event of each alert must not lose how bad it was, however batches are cut."""
    world = _world(profile=make_profile(idle_reset_s=36000), pace=EAGER_SAVES)
    values = make_series(0, 140, spikes=0)
    values[135:] += 30.0
    world.produce("s", values)
    worker = world.worker()
    if not is_one_batch:
        world.run(worker)
    if control is not None:
        world.send("s", encode_control("s", control), START_MS + 140 * INTERVAL_MS)
    if control is None or is_one_batch:
        world.produce("s", make_series(1, 8), start_ms=START_MS + 2000 * INTERVAL_MS)
    world.run(worker)
    worker.stop()
    *before, last = world.output().alerts
    assert (last.event, last.score, last.features) == ("resolved", 0.0, ())
    assert last.peak_score >= max(alert.peak_score for alert in before) > 0.0
    assert last.severity == before[-1].severity != "none"


def test_an_episode_is_resolved_with_the_figures_of_its_own_row() -> None:
    """Two long silences in one batch end two episodes, and neither event may borrow the figures of the other."""
    world = _world(profile=make_profile(idle_reset_s=36000), pace=make_pace(max_poll_records=500))
    for number, jump in enumerate((30.0, 300.0, 0.0)):
        values = make_series(number, 140, spikes=0)
        values[135:] += jump
        world.produce("s", values, start_ms=START_MS + 2000 * number * INTERVAL_MS)
    _finished(world).stop()
    alerts = world.output().alerts
    resolved = [alert for alert in alerts if alert.event == "resolved"]
    assert len(resolved) == 2
    for end in resolved:
        before = [a.peak_score for a in alerts if a.alert_id == end.alert_id and a.event != "resolved"]
        assert end.peak_score >= max(before) > 0.0
    assert resolved[0].peak_score < resolved[1].peak_score


def test_forgotten_stream_leaves_the_store() -> None:
    """Forget is a reset whose row is deleted too."""
    world = _world()
    world.produce("s", make_series(0, 8))
    world.produce("t", make_series(1, 8))
    world.send("s", encode_control("s", "forget"))
    _finished(world).stop()
    assert set(world.store.scan(world.store.keys(GROUP)[0], 0, 100)[1]) == {"t"}


def test_store_away_pauses_and_resumes_without_loss() -> None:
    """The worker waits, says so, and goes on by itself."""
    away = AwayStore()
    world = _world(max_streams=2, store=away)
    for number in range(6):
        world.produce(f"s{number}", make_series(number, 20))
    worker = world.worker()
    away.is_away = True
    for _ in range(20):
        worker.step()
    assert worker.waiting_for == "redis"
    away.is_away = False
    world.run(worker, max_steps=3000)
    assert len(world.output().scores) == 120
    assert world.output().duplicates == 0


def test_a_swap_waits_for_a_store_that_is_away_and_scoring_does_not() -> None:
    """A promotion in the middle of an outage must not stop what resident rows can do."""
    away = AwayStore()
    world = _world(pace=make_pace(max_poll_records=4, save_interval_s=0.1), store=away)
    world.produce("s", make_series(0, 40))
    worker = _finished(world)
    away.is_away = True
    world.produce("s", make_series(1, 200), start_ms=START_MS + 100 * INTERVAL_MS)
    world.target = VERSION_B
    world.clock.advance(5)
    began_s = world.clock.now_s
    for _ in range(30):
        worker.step()
    assert world.clock.now_s - began_s < 30
    assert len(world.output().scores) == 240
    away.is_away = False
    assert worker.keeper.drain(worker.partitions, 60.0)
    for _ in range(5):
        worker.step()
        world.clock.advance(1)
    world.produce("s", make_series(2, 40), start_ms=START_MS + 400 * INTERVAL_MS)
    world.run(worker)
    versions = {time: version for (_, time), version in world.output().versions.items()}
    assert versions[START_MS + 299 * INTERVAL_MS] == VERSION_A
    assert versions[START_MS + 439 * INTERVAL_MS] == VERSION_B


def test_rows_that_wait_for_a_store_that_is_away_keep_the_worker_in_its_group() -> None:
    """A step must not wait for a minute: nobody would poll, hear a signal, or tell health that all is well."""
    away = AwayStore()
    world = _world(max_streams=2, store=away)
    for number in range(6):
        world.produce(f"s{number}", make_series(number, 20))
    worker = world.worker()
    while not worker.partitions or not worker.partitions[ONE].is_folding:
        worker.step()
    away.is_away = True
    for _ in range(10):
        worker.step()
    polls: list[str] = []
    world.broker.interrupt = polls.append
    began_s = world.clock.now_s
    for _ in range(5):
        worker.step()
    assert polls.count("poll") == 5
    assert world.clock.now_s - began_s < 5 * 3
    assert worker.waiting_for == "redis"


def test_a_registry_that_cannot_be_read_changes_nothing() -> None:
    """Who serves already needs no pointer: a hiccup of a network volume must not end every worker."""
    world = _world()
    world.produce("s", make_series(0, 40))
    worker = _finished(world)

    world.target = OSError(116, "Stale file handle")
    world.clock.advance(5)
    world.produce("s", make_series(1, 40), start_ms=START_MS + 100 * INTERVAL_MS)
    world.run(worker)
    assert len(world.output().scores) == 80


def test_what_ends_a_worker_in_the_middle_of_a_step_is_neither_committed_nor_saved() -> None:
    """Rule 14: rows may be ahead of what was told, and offsets behind it; start-up is the recovery."""

    def fill(world: World) -> None:
        for number in range(3):
            world.produce(f"s{number}", make_series(number, 160))

    world = _world(pace=make_pace(save_interval_s=0.1))
    fill(world)
    sent = count()

    def signalled(step: str) -> None:
        if step == "add" and next(sent) == 4:
            raise SystemExit(143)

    world.broker.interrupt = signalled
    metrics = Metrics()
    with Health("127.0.0.1", 0, metrics.registry) as health, pytest.raises(SystemExit):
        work(world.worker(), metrics, health, _NotAsked())
    world.broker.interrupt = lambda step: None
    world.run(world.worker())
    assert_same_output(world.output(), _expected(fill).output())
    assert world.output().duplicates == 0
    assert not any(stats.restarts for stats in world.stats)


def test_a_damaged_row_costs_its_own_stream_its_past_and_nobody_else_anything() -> None:
    """One flipped bit in the store must not end the worker, again and again."""
    world = _world()
    for stream in "ab":
        world.produce(stream, make_series(ord(stream), 160))
    _finished(world).stop()
    damaged = bytearray(_saved(world)["a"])
    damaged[-1] ^= 1
    _saved(world)["a"] = bytes(damaged)
    later = START_MS + 200 * INTERVAL_MS
    for stream in "ab":
        world.produce(stream, make_series(ord(stream) + 9, 40), start_ms=later)
    world.run(world.worker())
    found = world.output()
    assert len(found.scores) == 2 * 200
    assert found.partial["a", later]
    assert not found.partial["b", later]


def test_a_record_dated_beyond_all_years_is_a_dead_letter() -> None:
    """Its time would be written into an alert, which has no way to say it."""
    world = _world()
    for at, timestamp_ms in enumerate((START_MS, 10**17, START_MS + 10_000)):
        times = START_MS + INTERVAL_MS * np.arange(4 * at, 4 * at + 4)
        world.send("s", encode_packed("s", times, make_series(at, 4)), timestamp_ms)
    _finished(world).stop()
    found = world.output()
    assert len(found.scores) == 8
    assert ["outside the years" in letter.reason for letter in found.dead_letters] == [True]


def test_broker_away_waits_and_resumes_without_loss() -> None:
    """As above, for Kafka."""
    world = _world()
    world.produce("s", make_series(0, 80))
    worker = world.worker()
    for _ in range(3):
        worker.step()
    world.broker.away = True
    for _ in range(20):
        worker.step()
    assert worker.waiting_for == "kafka"
    world.broker.away = False
    world.run(worker, max_steps=3000)
    assert len(world.output().scores) == 80
    assert world.output().duplicates == 0


def test_bad_records_go_to_the_dead_letters_and_change_no_neighbour() -> None:
    """Invariant 6: each bad record costs itself only."""
    world, clean = _world(), _world()
    series = make_series(0, 40)
    for each in (world, clean):
        for at in range(0, 40, 4):
            each.produce("s", series[at : at + 4], start_ms=START_MS + at * INTERVAL_MS)
            if each is world:
                each.send("s", (b"{}", b"not a window", b"\x97" + b"\x00" * 9, b'{"stream_id":"s"}')[at // 4 % 4])
    _finished(world).stop()
    _finished(clean).stop()
    found = world.output()
    assert_same_output(found, clean.output(), tolerance=0.0)
    assert len(found.dead_letters) == 10
    assert all(letter.reason for letter in found.dead_letters)


def test_a_reason_as_long_as_its_record_fits_a_dead_letter() -> None:
    """Invariant 6: a letter over the broker's limit could not be written, and its record would be read for ever."""
    world = _world()
    world.send("s", json.dumps({"stream_id": "s", "\u0001" * 90_000: 1}).encode())
    world.send("s", json.dumps({"stream_id": "s", "x" * 500_000: 1}).encode())
    _finished(world).stop()
    letters = [record.value for record in world.broker.visible("dead")]
    assert len(letters) == 2
    assert max(map(len, letters)) < 900_000


def test_late_and_repeated_observations_are_counted_and_not_folded() -> None:
    """Cutting or repeating what was folded changes no later score: a row's past is in it once."""
    world, clean = _world(), _world()
    series = make_series(0, 80)
    clean.produce("s", series)
    world.produce("s", series[:40])
    world.produce("s", series[20:60], start_ms=START_MS + 20 * INTERVAL_MS, cuts=lambda at: 13)
    world.produce("s", series[40:], start_ms=START_MS + 40 * INTERVAL_MS)
    _finished(world).stop()
    _finished(clean).stop()
    assert_same_output(world.output(), clean.output())
    assert sum(sum(stats.late.values()) for stats in world.stats) == 40


def test_no_output_of_a_stream_depends_on_another() -> None:
    """Invariant 4: alone or among many, the same scores."""
    alone, among = _world(), _world()
    alone.produce("s", make_series(0, 60))
    for number in range(5):
        among.produce(f"other{number}", make_series(number, 60), cuts=lambda at: 7)
    among.produce("s", make_series(0, 60))
    _finished(alone).stop()
    _finished(among).stop()
    ours = {place: score for place, score in among.output().scores.items() if place[0] == "s"}
    expected = alone.output().scores
    assert ours.keys() == expected.keys()
    np.testing.assert_allclose([ours[p] for p in sorted(ours)], [expected[p] for p in sorted(ours)], atol=1e-3)


def _saved(world: World) -> dict[str, bytes]:
    """Saved rows by stream: the store's own."""
    (key,) = world.store.keys(GROUP)
    return world.store._states[key].rows


class _NotAsked:
    """Nobody asks to stop."""

    is_asked = False
