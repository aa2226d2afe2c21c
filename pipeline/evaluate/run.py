"""A whole evaluation: every contender over every group of series, on several processes.

A task is one contender over the series that one engine can take side by side. Tasks are independent: each reads its
series, folds them, judges them and hands back figures, so that nothing as large as a track crosses a process boundary.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.evaluate.contenders import SERVED, Contender, predictor_of, random_tracks, river_track
from pipeline.evaluate.fold import Group, Track, fold, groups_of
from pipeline.evaluate.generated import plant_series
from pipeline.evaluate.judge import SeriesResult, judge, replay_budgets
from pipeline.evaluate.pictures import draw_series
from pipeline.evaluate.plan import PLANTS
from pipeline.evaluate.series import Entry, LabelledSeries, load_series
from pipeline.profile import Profile
from pipeline.registry import base_weights

POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Task:
    """One contender over some series; ``run`` counts the weights of the served predictor where there are several."""

    number: int
    folder: Path
    entries: tuple[Entry, ...]
    contender: Contender
    run: int
    knobs: Profile
    is_quick: bool
    has_pictures: bool

    @property
    def rows(self) -> int:
        """Observations, as far as the manifest knows: for progress."""
        return sum(entry.rows_taken(self.is_quick) for entry in self.entries)

    @property
    def cost(self) -> float:
        """About how long it takes: steps of the longest series through a chain, else rows."""
        if self.contender.kind == "chain":
            return float(max(entry.rows_taken(self.is_quick) for entry in self.entries))
        return self.rows * (0.01 + 0.002 * self.entries[0].numbers)


def tasks_of(
    folder: Path,
    entries: Sequence[Entry],
    contenders: Sequence[Contender],
    knobs: Sequence[Profile],
    *,
    is_quick: bool = False,
    has_pictures: bool = True,
) -> list[Task]:
    """The tasks of a run, dearest first.

    Parameters
    ----------
    knobs
        Profiles that differ in their predictor: the served contender runs with each of them, the others beside the
        first.
    """
    together: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        plan = entry.plan
        interval = None if entry.timestamp_kind == "row_index" else entry.interval_seconds
        key = (plan.evidence, entry.numbers, interval, entry.timestamp_kind == "iso8601", plan.budget)
        together.setdefault(key, []).append(entry)
    tasks = [
        Task(0, folder, taken, contender, run, used, is_quick, has_pictures and contender == SERVED and run == 0)
        for group in together.values()
        for contender in contenders
        for run, used in enumerate(knobs if contender == SERVED else knobs[:1])
        if (taken := _taken(group, contender))
    ]
    ordered = sorted(tasks, key=lambda task: -task.cost)
    return [replace(task, number=number) for number, task in enumerate(ordered)]


def _taken(group: Sequence[Entry], contender: Contender) -> tuple[Entry, ...]:
    """Plants measure alarm budgets, which only chains have."""
    return tuple(entry for entry in group if contender.kind == "chain" or entry.dataset != PLANTS)


@dataclass(frozen=True, slots=True)
class Done:
    """A finished task and its results."""

    task: Task
    results: tuple[SeriesResult, ...]


def run_tasks(
    tasks: Sequence[Task],
    processes: int,
    progress: Callable[[int, int], None] = lambda task, rows: None,
    begin: Callable[[], None] | None = None,
) -> Iterator[Done]:
    """Run tasks, dearest first; yields each as it ends.

    Parameters
    ----------
    processes
        1 runs them here, one after the other.
    progress
        Called now and then with a task's number and the rows it has folded so far.
    begin
        Called first in each process of its own: where its threads are chosen.
    """
    if processes == 1:
        for task in tasks:
            yield Done(task, perform(task, lambda rows, number=task.number: progress(number, rows)))  # type: ignore[misc]
        return
    context = multiprocessing.get_context("spawn")
    counters = context.Array("q", len(tasks), lock=False)
    with ProcessPoolExecutor(processes, context, _begin, (counters, begin)) as pool:
        running: dict[Future[tuple[SeriesResult, ...]], Task] = {pool.submit(_perform, task): task for task in tasks}
        while running:
            finished, _ = wait(running, POLL_S, FIRST_COMPLETED)
            for number, rows in enumerate(counters):
                progress(number, rows)
            for future in finished:
                task = running.pop(future)
                yield Done(task, future.result())


_counters: Any = None


def _begin(counters: Any, begin: Callable[[], None] | None) -> None:
    global _counters
    _counters = counters
    if begin is not None:
        begin()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A run that is killed takes its processes along: they would fold on for minutes, for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _perform(task: Task) -> tuple[SeriesResult, ...]:
    def note(rows: int) -> None:
        _counters[task.number] = rows

    return perform(task, note)


def perform(task: Task, progress: Callable[[int], None] = lambda rows: None) -> tuple[SeriesResult, ...]:
    """Read, fold and judge the series of one task; ``progress`` is told the rows folded so far."""
    series = _loaded(task.folder, task.entries, task.is_quick)
    results: list[SeriesResult] = []
    done = 0

    def note(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done)

    for group in groups_of(series, task.knobs):
        tracks = _tracks(task, group, note)
        budgets = _budgets(task, group, tracks)
        for item in group.series:
            result = judge(item, tracks[item.name], budgets.get(item.name, {}))
            if task.has_pictures and item.is_judged and not (task.is_quick and result.is_flawless):
                result = replace(result, picture=draw_series(item, tracks[item.name]))
            results.append(result)
    return tuple(results)


@lru_cache(maxsize=2)
def _loaded(folder: Path, entries: tuple[Entry, ...], is_quick: bool) -> list[LabelledSeries]:
    """Series of a task; kept, since the next task of this process is likely another contender over the same."""
    recorded = [entry for entry in entries if entry.dataset != PLANTS]
    generated = [entry for entry in entries if entry.dataset == PLANTS]
    series = load_series(folder, recorded, is_quick=is_quick) if recorded else []
    return series + plant_series(generated, is_quick)


def _tracks(task: Task, group: Group, note: Callable[[int], None]) -> dict[str, Track]:
    if task.contender.kind == "chain":
        profile = group.profile
        weights = base_weights(profile.builtin() or profile.predictor)
        return fold(group, predictor_of(task.contender, weights), note, has_bands=task.has_pictures)
    if task.contender.kind == "random":
        return random_tracks(group)
    tracks = {}
    for item in group.series:
        tracks[item.name] = river_track(item, task.contender.name)
        note(len(item.stream))
    return tracks


def _budgets(task: Task, group: Group, tracks: dict[str, Track]) -> dict[str, Any]:
    chosen: list[LabelledSeries] = [item for item in group.series if item.clean_rows.stop > item.clean_rows.start]
    if not chosen or task.contender.kind != "chain":
        return {}
    return replay_budgets(chosen, tracks)
