"""How a worker says it stands, from a whole worker in memory."""

from __future__ import annotations

from pipeline.metrics import Metrics
from pipeline.status import LAG_REFRESH_S
from tests.builders import INTERVAL_MS, START_MS, VERSION_A, World, make_pace, make_series
from tests.fakes import GatedStore


def test_lag_counts_what_is_not_committed_yet() -> None:
    """Scaling goes by lag: it is there before the work, and zero after it."""
    world = World(partitions=2)
    for stream in ("a", "b", "c"):
        world.produce(stream, make_series(0, 40))
    worker = world.worker()
    worker.step()
    worker.step()
    assert worker.status().lag["p"] > 0
    world.run(worker)
    world.clock.advance(LAG_REFRESH_S)
    assert worker.status().lag == {"p": 0}


def test_ends_of_logs_are_asked_for_seldom() -> None:
    """A question to the broker in every step would cost more than the step."""
    world = World(partitions=1)
    world.produce("a", make_series(0, 8))
    worker = world.worker()
    world.run(worker)
    world.clock.advance(LAG_REFRESH_S)
    assert worker.status().lag == {"p": 0}
    world.produce("b", make_series(1, 8))
    assert worker.status().lag == {"p": 0}
    world.clock.advance(LAG_REFRESH_S)
    assert worker.status().lag == {"p": 2}


def test_status_survives_a_broker_that_is_away() -> None:
    """The dashboard is needed most when something is wrong: the last answer stands, and the cause is named."""
    world = World(partitions=1)
    world.produce("a", make_series(0, 8))
    worker = world.worker()
    world.run(worker)
    before = worker.status()
    world.produce("a", make_series(0, 8))
    world.broker.away = True
    for _ in range(5):
        world.clock.advance(LAG_REFRESH_S)
        worker.step()
    assert worker.status().lag == before.lag


def test_status_names_partitions_rows_and_versions() -> None:
    """What runs where: states of partitions, streams on the device, and the version that scores."""
    world = World(partitions=2)
    for stream in ("a", "b", "c"):
        world.produce(stream, make_series(0, 8))
    worker = world.worker()
    world.run(worker)
    status = worker.status()
    assert status.partitions == {"live": 2}
    assert status.rows_resident == {"p": 3}
    assert status.rows_evicted == {"p": 0}
    assert status.model_versions == {"p": (VERSION_A,)}
    assert status.waiting_for is None


def test_unsaved_state_ages_on_the_device_and_on_its_way() -> None:
    """What a successor would replay is as old as the oldest row that is not saved, whoever is slow about it."""
    store = GatedStore()
    world = World(partitions=1, store=store, pace=make_pace(min_images_per_commit=0, save_interval_s=1e6))
    for stream in ("a", "b", "c"):
        world.produce(stream, make_series(0, 8))
    worker = world.worker()
    store.shut()
    world.run(worker)
    world.clock.advance(20)
    assert worker.status().unsaved_age_s > 20, "one row is on its way, the others have not left"
    store.let(1000)
    assert worker.keeper.drain(worker.partitions, 5.0)
    assert worker.status().unsaved_age_s > 20, "the others"
    for _ in range(2):
        world.clock.advance(1)
        worker.step()
        assert worker.keeper.drain(worker.partitions, 5.0)
    assert worker.status().unsaved_age_s == 0.0
    world.produce("a", make_series(1, 8), start_ms=START_MS + 100 * INTERVAL_MS)
    store.shut()
    world.run(worker)
    world.clock.advance(20)
    assert worker.status().unsaved_age_s > 20, "all that there is is on its way"
    store.let(1000)
    worker.stop()


def test_metrics_take_what_a_worker_reports() -> None:
    """The two ends fit: every step's report and the status go into the metrics as they are."""
    world = World(partitions=1)
    world.produce("a", make_series(0, 40))
    worker = world.worker()
    world.run(worker)
    metrics = Metrics()
    for stats in world.stats:
        metrics.observe(stats)
    metrics.show(worker.status())
    assert metrics.registry.get_sample_value("anomaly_observations_total", {"profile": "p"}) == 40
    assert metrics.registry.get_sample_value("anomaly_scores_total", {"profile": "p"}) == 40
    assert metrics.registry.get_sample_value("anomaly_partitions", {"state": "live"}) == 1
    assert metrics.registry.get_sample_value("anomaly_up") == 1
