"""The row layout: what a stream carries, by name."""

from __future__ import annotations

import pytest
import torch

from models.config import FoldConfig, PredictorConfig
from models.pretrained import builtin
from models.row import RowLayout, Rows
from models.step import Scorer
from models.tail import OPENED, WARMING_UP

SINGLE = FoldConfig(("a", "b"), 60.0)
GRU = PredictorConfig()


@pytest.mark.parametrize("evidence", ["single", "jump", "coupled"])
@pytest.mark.parametrize("scope", ["feature", "stream"])
def test_slices_tile_the_rows(evidence, scope):
    """Every number has exactly one name, and none is forgotten."""
    layout = RowLayout(FoldConfig(("a", "b"), 60.0, evidence), PredictorConfig(scope=scope, features=2))
    for where, width in (("feature", layout.feature_width), ("entity", layout.entity_width)):
        members = [item for item in layout.describe() if item[0] == where]
        assert [item[2] for item in members] == [sum(m[3] for m in members[:i]) for i in range(len(members))]
        assert sum(item[3] for item in members) == width
    assert all(meaning for *_, meaning in layout.describe())
    assert layout.numbers == 2 * layout.feature_width + layout.entity_width == layout.fresh().numel()


def test_widths_are_those_the_recipe_promises():
    """About 680 numbers for a full feature row, 180 for jump, 135 for light: what a million streams cost."""
    assert RowLayout(SINGLE, GRU).feature_width <= 680
    assert RowLayout(FoldConfig(("a",), 60.0, "jump"), GRU).feature_width <= 190
    assert RowLayout(FoldConfig(("a",), 60.0, light=True), PredictorConfig(hidden=32)).feature_width <= 140


@pytest.mark.parametrize(("before", "after"), [("jump", "single"), ("single", "jump"), ("jump", "coupled")])
def test_other_evidence_warms_up_again_and_pages_nobody(before, after):
    """A setting that engineers change must not open an alert on every stream they have."""
    draws = torch.Generator().manual_seed(0)
    x = 50 + 2 * torch.randn(1400, 8, 3, generator=draws)
    times = (60_000 * torch.arange(1, 1401)).unsqueeze(1).expand(-1, 8).contiguous()
    old, new = (Scorer(builtin("gru32"), FoldConfig(("a", "b", "c"), 60.0, kind)) for kind in (before, after))
    slots, rows, carried = torch.arange(8), old.rows(8), new.rows(8)
    old.score(rows, slots, x[:400], times[:400], torch.full((8,), -1))
    carried.write(slots, new.layout.carry(rows.read(slots), old.layout, "carry"))
    said = new.score(carried, slots, x[400:], times[400:], times[399])
    assert (said.verdict[:100] == WARMING_UP).all()
    assert (said.event == OPENED).sum() <= 2


def test_id_follows_the_layout():
    """Rows of another layout must never be taken for ours; a budget changes no layout."""
    ids = {
        RowLayout(config, predictor).id
        for config in (SINGLE, FoldConfig(("a", "b", "c"), 60.0), FoldConfig(("a", "b"), None))
        for predictor in (GRU, PredictorConfig(hidden=32), PredictorConfig("lstm"))
    }
    assert len(ids) == 9
    assert RowLayout(FoldConfig(("x", "y"), 60.0, alarm_every_s=60.0), GRU).id == RowLayout(SINGLE, GRU).id


def test_impossible_profiles_are_refused():
    """A profile that cannot be scored fails when it is read, not at its first record."""
    with pytest.raises(ValueError, match="at least one"):
        RowLayout(FoldConfig((), 60.0), GRU)
    with pytest.raises(ValueError, match="at most 16"):
        RowLayout(FoldConfig(tuple(map(str, range(17))), 60.0, "coupled"), GRU)
    with pytest.raises(ValueError, match="sees 3 features"):
        RowLayout(SINGLE, PredictorConfig(scope="stream", features=3))


def test_rows_come_back_as_written_and_grow():
    """A snapshot that is loaded into any slot of any table is the stream it was."""
    layout = RowLayout(SINGLE, PredictorConfig(hidden=4))
    rows = Rows.allocate(layout, 4)
    values = torch.randn(2, layout.numbers)
    rows.write(torch.tensor([3, 1]), values)
    assert torch.equal(rows.read(torch.tensor([3, 1])), values)
    larger = rows.grown(9)
    assert larger.capacity == 9
    assert torch.equal(larger.read(torch.tensor([3, 1])), values)
    assert torch.equal(larger.read(torch.tensor([8]))[0], layout.fresh())
    larger.clear(torch.tensor([3]))
    assert torch.equal(larger.read(torch.tensor([3]))[0], layout.fresh())


def test_reset_keeps_statistics_and_drops_what_the_network_made():
    """Another network's hidden state, forecasts and fast weights mean nothing to this one; the stream's past does."""
    layout = RowLayout(SINGLE, PredictorConfig(hidden=4))
    row = torch.randn(3, layout.numbers)
    assert torch.equal(layout.carry(row, layout, "carry"), row)
    reset, _ = layout.split(layout.carry(row, layout, "reset"))
    was, _ = layout.split(row)
    fresh, _ = layout.split(layout.fresh())
    for name in ("hidden", "mixture", "pending_4", "pending_8", "keys", "fast_weights", "adaptation"):
        assert torch.equal(reset[..., layout.columns(name)], fresh[..., layout.columns(name)].expand(3, 2, -1))
    for name in ("normaliser", "levels", "season_mean", "behaviour_tail"):
        assert torch.equal(reset[..., layout.columns(name)], was[..., layout.columns(name)])


def test_carry_between_layouts_copies_what_fits():
    """A wider network changes the hidden state's width: that slice starts fresh, the rest is kept."""
    old, new = RowLayout(SINGLE, PredictorConfig(hidden=4)), RowLayout(SINGLE, PredictorConfig(hidden=6))
    row = torch.randn(old.numbers)
    carried, entity = new.split(new.carry(row, old, "carry"))
    was, was_entity = old.split(row)
    assert (carried[:, new.columns("hidden")] == 0).all()
    assert torch.equal(carried[:, new.columns("normaliser")], was[:, old.columns("normaliser")])
    assert torch.equal(carried[:, new.columns("season_mean")], was[:, old.columns("season_mean")])
    assert torch.equal(entity, was_entity)
    with pytest.raises(ValueError, match="features"):
        RowLayout(FoldConfig(("a",), 60.0), GRU).carry(row, old, "carry")
