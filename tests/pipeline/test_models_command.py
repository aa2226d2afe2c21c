"""``tidewatch models``: what an operator may do to versions, and what is refused."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.config import FoldConfig, PredictorConfig
from models.pretrained import MANIFEST_FILE, WEIGHTS_FILE, Weights
from models.row import RowLayout
from pipeline import __version__
from pipeline.__main__ import main
from pipeline.errors import VersionError
from pipeline.models_command import prune
from pipeline.registry import FOLD_FILE, Decision, Registry, version_name
from tests.builders import make_profile, make_series, tiny_weights
from tests.pipeline.test_replay import write_csv

Command = Callable[..., tuple[int, str, str]]
FOLD = make_profile().fold()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Two versions of profile ``p``, the first of which is served."""
    found = Registry(tmp_path / "registry")
    first = found.publish("p", tiny_weights(0), FOLD)
    found.publish("p", replace(tiny_weights(1), manifest={"parent": first, "made_by": "tidewatch learner"}), FOLD)
    found.serve("p", first)
    return found


@pytest.fixture
def command(tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]) -> Command:
    """``tidewatch models`` with settings of this registry; its code and what it said."""
    settings = tmp_path / "t.toml"
    tiny_weights(0).save(tmp_path / "base")
    settings.write_text(
        f'[registry]\nfolder = "{tmp_path / "registry"}"\n[kafka]\nbootstrap_servers = ["127.0.0.1:1"]\n'
        'call_deadline_s = 0.5\n[profiles.p]\ntopics = ["input"]\nfeatures = ["value"]\ninterval_s = 60.0\n'
        'alarm_budget = "1 per day"\n'
        f'predictor = "{tmp_path / "base"}"\n'
    )

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["models", words[0], "--settings", str(settings), *words[1:]])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_list_and_show_say_what_is_known(command: Command, registry: Registry) -> None:
    """Whoever is paged by a new version wants to know where it came from."""
    first, second = registry.versions("p")
    rows = json.loads(command("list", "--json")[1])
    assert [(row["version"], row["state"], row["parent"]) for row in rows] == [
        (first, "served", ""),
        (second, "", first),
    ]
    code, shown, _ = command("show", second[:6], "--json")
    assert code == 0
    assert json.loads(shown)["about"]["made_by"] == "tidewatch learner"
    assert first in command("list")[1]


def test_promote_and_rollback_move_the_pointer_and_are_written_down(command: Command, registry: Registry) -> None:
    """Every change of what is served can be told afterwards, with its author."""
    first, second = registry.versions("p")
    assert command("promote", second)[0] == 0
    assert registry.current("p") == second
    assert command("rollback")[0] == 0
    assert registry.current("p") == first
    told = [(d.event, d.version, d.parent, d.by) for d in registry.history("p")]
    assert told == [("promoted", second, first, "operator"), ("rolled back", second, first, "operator")]
    assert second in command("history")[1]


def test_rollback_without_a_past_is_refused(command: Command) -> None:
    """Guessing a version to serve would be worse than asking."""
    code, _, error = command("rollback")
    assert code == 2
    assert "--to" in error


def test_a_rollback_of_changed_settings_says_to_change_them_back(command: Command, registry: Registry) -> None:
    """A worker takes changed settings over without a decision; --to would only be refused."""
    first = registry.versions("p")[0]
    before = registry.publish("p", tiny_weights(0), replace(FOLD, idle_reset_s=1e6))
    registry.publish("p", tiny_weights(1), replace(FOLD, idle_reset_s=1e6))
    code, _, error = command("rollback")
    assert code == 2
    assert (
        f"{first} is {before} with what the settings say now (idle_reset_s 1000000.0 -> {FOLD.idle_reset_s})" in error
    )
    assert "change the settings back" in error
    assert "made with other settings" in command("rollback", "--to", before)[2], "as was said"


def test_diff_names_settings_weights_and_rows(command: Command, registry: Registry) -> None:
    """What becomes of running streams' rows at a swap is said before it happens."""
    first, second = registry.versions("p")
    found = json.loads(command("diff", first, second, "--json")[1])
    assert found["settings"] == {}
    assert found["rows"].startswith("same layout")
    assert found["relative change"]["mu0"] > 0
    light = registry.publish("p", tiny_weights(0), replace(FOLD, light=True))
    found = json.loads(command("diff", first, light, "--json")[1])
    assert found["settings"] == {"light": "False -> True"}
    assert "carried; fresh:" in found["rows"]


def test_a_version_of_other_settings_is_not_promoted(command: Command, registry: Registry) -> None:
    """The next worker would replace it with one of its own settings, and nobody would know why."""
    other = registry.publish("p", tiny_weights(1), replace(FOLD, idle_reset_s=1e6))
    code, _, error = command("promote", other)
    assert code == 2
    assert "idle_reset_s" in error


def test_a_version_of_another_shape_is_not_promoted(command: Command, registry: Registry) -> None:
    """The next worker to start would go back to the shape that the settings name, and write nothing down."""
    other = registry.publish("p", Weights.random(PredictorConfig(hidden=3)), FOLD)
    code, _, error = command("promote", other)
    assert code == 2
    assert "another shape" in error
    assert registry.current("p") != other


def test_a_rollback_finds_what_was_served_before_however_many_came_since(command: Command, registry: Registry) -> None:
    """A learner tries one candidate after the other: newer than what it would go back to, and never served."""
    first, second = registry.versions("p")
    assert command("promote", second)[0] == 0
    for seed in range(2, 6):
        registry.publish("p", tiny_weights(seed), FOLD)
    registry.remove_unused("p", keep=[], newest=2, now_s=0.0)
    assert command("rollback", "--to", first)[0] == 0
    assert command("promote", second)[0] == 0
    assert command("rollback")[0] == 0
    assert registry.current("p") == first


def test_export_and_import_carry_a_version_to_another_registry(
    command: Command, registry: Registry, tmp_path: Path
) -> None:
    """A model made at one site serves at another, under that site's settings."""
    _, second = registry.versions("p")
    assert command("export", second, "--to", str(tmp_path / "out"))[0] == 0
    elsewhere = Registry(tmp_path / "elsewhere")
    assert elsewhere.bring_in("p", tmp_path / "out", FOLD) == second
    assert command("import", str(tmp_path / "out"))[0] == 0
    assert registry.history("p")[-1].event == "imported"
    assert command("export", second, "--to", str(tmp_path / "out"))[0] == 2, "nothing is overwritten"


@pytest.fixture
def spikes(tmp_path: Path) -> Path:
    """A recording with faults that a tiny predictor finds."""
    return write_csv(tmp_path / "spikes.csv", {name: make_series(seed, 400) for seed, name in enumerate("abcd")})


def test_compress_publishes_a_small_version_with_what_it_changes(
    command: Command, registry: Registry, spikes: Path
) -> None:
    """Size, speed and scores beside the original's; it is served only when someone says so."""
    first = registry.versions("p")[0]
    code, said, _ = command("compress", first, "--form", "bf16", "--on", str(spikes), "--json")
    assert code == 0
    figures = json.loads(said)
    small = figures["version"]
    assert figures["size_bytes"] == registry.size_bytes("p", small) < figures["size_bytes_before"]
    assert figures["anomalous"] > 0
    assert figures["changed_share"] <= figures["bound"]
    assert 0 < figures["score_mean"] <= figures["score_most"]
    assert registry.current("p") == first
    about = registry.load("p", small)[0].manifest
    assert (about["parent"], about["form"], about["effect"]["changed"]) == (first, "bf16", figures["changed"])
    assert registry.history("p")[-1].event == "compressed"


def test_compress_refuses_what_changes_too_many_verdicts(command: Command, registry: Registry, spikes: Path) -> None:
    """A model that alarms otherwise is another model, not a smaller one."""
    # saturated gates: a small error of a weight becomes a large one of the state
    violent = replace(tiny_weights(2), network={name: 5.0 * t for name, t in tiny_weights(2).network.items()})
    version = registry.publish("p", violent, FOLD)
    before = registry.versions("p")
    code, _, error = command("compress", version, "--form", "int8", "--on", str(spikes))
    assert code == 2
    assert "nothing is written" in error
    assert registry.versions("p") == before


def test_compress_says_when_recordings_cannot_show_a_change(
    command: Command, registry: Registry, tmp_path: Path
) -> None:
    """Where nothing is anomalous, no verdict can change, and a bound that holds says nothing."""
    quiet = write_csv(tmp_path / "quiet.csv", {"a": make_series(1, 60, spikes=0)})
    code, _, error = command("compress", registry.versions("p")[0], "--on", str(quiet))
    assert code == 2
    assert "nothing is anomalous" in error


def test_a_compressed_version_moves_to_another_registry_as_it_is(
    command: Command, registry: Registry, spikes: Path, tmp_path: Path
) -> None:
    """Export and import keep name and form."""
    first = registry.versions("p")[0]
    small = json.loads(command("compress", first, "--on", str(spikes), "--json")[1])["version"]
    registry.export("p", small, tmp_path / "out")
    elsewhere = Registry(tmp_path / "elsewhere")
    assert elsewhere.bring_in("p", tmp_path / "out", FOLD) == small
    assert elsewhere.size_bytes("p", small) == pytest.approx(registry.size_bytes("p", small), abs=64)


def _truncated(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-9])


def _foreign(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_text("{}")


def _not_finite(folder: Path) -> None:
    weights = tiny_weights(1)
    bad = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.network.items()}
    replace(weights, network=bad).save(folder)


def _other_architecture(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["predictor"]["hidden"] = 9
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def _other_family(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["predictor"]["cell"] = "lstm"
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def _tails_not_finite(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["pooled"]["level"]["beta"] = float("nan")
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def _preconditioner_not_finite(folder: Path) -> None:
    weights = tiny_weights(1)
    replace(weights, P0=torch.full_like(weights.P0, torch.inf)).save(folder)


def _empty(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [
        _truncated,
        _empty,
        _foreign,
        _not_finite,
        _preconditioner_not_finite,
        _tails_not_finite,
        _other_architecture,
        _other_family,
    ],
)
def test_damaged_or_foreign_files_are_refused(
    command: Command, registry: Registry, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Half a model scores everything wrong; nothing of it may be published, and the message names the file."""
    tiny_weights(1).save(tmp_path / "given")
    damage(tmp_path / "given")
    before = registry.versions("p")
    code, _, error = command("import", str(tmp_path / "given"))
    assert code == 2
    assert str(tmp_path / "given") in error
    assert registry.versions("p") == before


def test_a_version_damaged_on_disk_is_shown_and_not_served(
    command: Command, registry: Registry, tmp_path: Path
) -> None:
    """A pointer to half a version would stop every worker."""
    first, second = registry.versions("p")
    _truncated(tmp_path / "registry" / "p" / "versions" / second)
    assert [row["state"] for row in json.loads(command("list", "--json")[1])] == ["served", "damaged"]
    assert command("promote", second)[0] == 2
    assert registry.current("p") == first


def _of_another_release(registry: Registry, folder: Path, version: str) -> str:
    """Make a version look as if a release had written it that lays rows out otherwise, and serve it."""
    versions = folder / "p" / "versions"
    manifest = versions / version / MANIFEST_FILE
    content = json.loads(manifest.read_text())
    content["about"] |= {"row_layout": "0123456789abcdef", "code_version": "0.0.9"}
    manifest.write_text(json.dumps(content))
    (versions / version).rename(versions / "cccccccccccc")
    (folder / "p" / "current").write_text("cccccccccccc\n")
    return "cccccccccccc"


def test_a_version_of_another_row_layout_is_refused_and_published_anew(
    command: Command, registry: Registry, tmp_path: Path
) -> None:
    """Rows read by the wrong names would score everything wrong, without a word (docs/versions.md)."""
    _, second = registry.versions("p")
    old = _of_another_release(registry, tmp_path / "registry", second)
    with pytest.raises(VersionError, match=r"row layout 0123456789abcdef \(release 0\.0\.9\).*models import"):
        registry.load("p", old)
    code, _, error = command("show", old)
    assert code == 2
    assert "models import" in error
    assert {row["version"]: row["state"] for row in json.loads(command("list", "--json")[1])}[
        old
    ] == "served other layout"
    assert registry.ensure("p", str(_folder_of(tiny_weights(0), tmp_path)), FOLD) == second, "the same weights"
    assert registry.current("p") == second
    assert registry.load("p", second)[0].manifest["code_version"] == __version__


def test_a_release_with_another_row_layout_makes_another_version(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name says how rows lie, so that saved rows and histories never meet another layout under one name."""
    weights = tiny_weights(0)
    before = version_name(weights, FOLD)
    assert before == registry.versions("p")[0]
    monkeypatch.setattr("models.row.QUIET_RING", 11)
    assert version_name(weights, FOLD) != before


def test_another_predictor_of_the_same_shape_comes_into_service(registry: Registry, tmp_path: Path) -> None:
    """Who trains a predictor and names its folder wants that one, not what was learned from the one before."""
    for seed in (0, 1):
        tiny_weights(seed).save(tmp_path / f"{seed}")
    registry.ensure("p", str(tmp_path / "0"), FOLD)
    promoted = registry.publish("p", tiny_weights(7), FOLD)
    registry.serve("p", promoted)
    assert registry.ensure("p", str(tmp_path / "0"), FOLD) == promoted, "what was promoted stays in force"
    assert registry.wanted("p", str(tmp_path / "1"), FOLD).fingerprint() == tiny_weights(1).fingerprint()
    trained = registry.ensure("p", str(tmp_path / "1"), FOLD)
    assert registry.current("p") == trained == version_name(tiny_weights(1), FOLD)
    last = registry.history("p")[-1]
    assert (last.event, last.version, last.parent, last.by) == ("configured", trained, promoted, "settings")
    registry.serve("p", promoted)
    assert registry.ensure("p", str(tmp_path / "1"), FOLD) == promoted, "and what is promoted since does, too"


def test_another_number_of_features_is_refused_at_the_start(registry: Registry, tmp_path: Path) -> None:
    """Rows of other streams cannot be carried over; the message says what to do instead."""
    two = replace(FOLD, features=("value", "other"))
    with pytest.raises(VersionError, match=r"of 1 features, the settings name 2.*kafka\.group of their own"):
        registry.ensure("p", str(_folder_of(tiny_weights(0), tmp_path)), two)
    assert len(registry.versions("p")) == 2


def test_the_same_features_in_another_order_are_refused_at_the_start(registry: Registry, tmp_path: Path) -> None:
    """Rows know features by their place; what one of them has learned would be held against another."""
    folder = str(_folder_of(tiny_weights(0), tmp_path))
    registry.ensure("pumps", folder, replace(FOLD, features=("flow", "pressure")))
    with pytest.raises(VersionError, match="of flow, pressure, the settings name them in another order"):
        registry.ensure("pumps", folder, replace(FOLD, features=("pressure", "flow")))
    registry.ensure("pumps", folder, replace(FOLD, features=("inflow", "pressure")))  # a new name of the same column


def _folder_of(weights: Weights, tmp_path: Path) -> Path:
    weights.save(tmp_path / "base")
    return tmp_path / "base"


def test_a_manifest_says_how_rows_lie_and_which_release_wrote_it(registry: Registry) -> None:
    """Whoever moves versions between sites can see what goes together before anything starts."""
    weights, fold = registry.load("p", registry.versions("p")[0])
    assert weights.manifest["row_layout"] == RowLayout(fold, weights.predictor).id
    assert weights.manifest["code_version"] == __version__


def test_unclear_names_are_refused(command: Command) -> None:
    """A wrong guess would serve another model."""
    assert command("show", "zzz")[0] == 2
    code, _, error = command("show", "")
    assert code == 2
    assert "say more" in error


def test_pin_and_retrain_reach_the_learner(command: Command, registry: Registry) -> None:
    """Both are answers to a page at night: leave it alone, or try again now."""
    command("pin")
    assert registry.is_pinned("p")
    command("pin", "--off")
    assert not registry.is_pinned("p")
    command("retrain")
    assert registry.take_retrain("p")
    assert not registry.take_retrain("p")


def test_prune_asks_kafka_first(command: Command, registry: Registry) -> None:
    """Without the live histories nothing may be deleted (protocol.md rule 11)."""
    code, _, error = command("prune", "--keep", "1")
    assert code == 2
    assert "nothing is deleted" in error
    assert len(registry.versions("p")) == 2


def test_prune_keeps_the_newest_version(command: Command, registry: Registry) -> None:
    """It may be a candidate that is on trial: without its files a promotion would name a version that is gone."""
    code, _, error = command("prune", "--keep", "0")
    assert code == 2
    assert "--keep must be at least 1" in error


def test_prune_says_what_it_looked_at_and_kept(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing printed looks like a command that failed, or like one that found nothing to look at."""
    first, second = registry.versions("p")
    prune(Namespace(json=False), registry, "p", {first, "of another registry"}, keep=2)
    said = capsys.readouterr().out
    assert "profile p: none of 2 versions removed" in said
    assert "in live histories (1), the newest 2, the served one" in said
    prune(Namespace(json=False), registry, "p", set(), keep=0)
    said = capsys.readouterr().out
    assert f"{second} removed\nprofile p: 1 of 2 versions removed" in said
    prune(Namespace(json=True), registry, "p", set(), keep=0)
    assert capsys.readouterr().out == "", "for machines a line for each version that is gone"


def test_versions_of_live_histories_survive_removal(registry: Registry) -> None:
    """A replay that crosses a swap needs the version before it."""
    first, second = registry.versions("p")
    third = registry.publish("p", tiny_weights(2), FOLD)
    fourth = registry.publish("p", tiny_weights(3), FOLD)
    assert registry.remove_unused("p", {second}, 1, 0.0) == [third]
    assert registry.versions("p") == [first, second, fourth]


def test_history_outlives_a_line_cut_short(registry: Registry, tmp_path: Path) -> None:
    """A crash in mid-write must not hide every decision before it."""
    registry.note("p", Decision(1, "pinned", "a", "operator", figures={"x": float("inf"), "y": 2.0}))
    with (tmp_path / "registry" / "p" / "history.jsonl").open("a") as file:
        file.write('{"time_ms": 2, "event"')
    registry.note("p", Decision(3, "unpinned", "a", "operator"))
    pinned, unpinned = registry.history("p")
    assert dict(pinned.figures) == {"y": 2.0}
    assert unpinned.event == "unpinned"


def test_history_is_bounded_and_keeps_the_latest(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that writes a line every second must not fill the disk; several processes may write at a time."""
    monkeypatch.setattr("pipeline.registry.HISTORY_BYTES", 2000)
    monkeypatch.setattr("os.fsync", lambda handle: None)  # two hundred of them take minutes on a busy disk

    def write(version: str) -> None:
        other = Registry(tmp_path / "registry")
        for n in range(100):
            other.note("p", Decision(n, "held", version, "learner"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))
    assert sum(path.stat().st_size for path in (tmp_path / "registry" / "p").glob("history*")) < 5000
    kept = list(registry.history("p"))
    assert len(kept) > 15
    for version in "ab":  # which of the two writes first is not ours to say, each one's own order is
        latest = [decision.time_ms for decision in kept if decision.version == version]
        assert latest == list(range(100 - len(latest), 100))


def test_no_history_is_said(command: Command) -> None:
    """Nothing printed looks like a command that failed."""
    assert "no decisions yet" in command("history")[1]
    assert command("history", "--json")[1] == ""


def test_an_exported_folder_holds_its_settings(registry: Registry, tmp_path: Path) -> None:
    """Whoever receives it can see what it was made for."""
    first = registry.versions("p")[0]
    registry.export("p", first, tmp_path / "out")
    assert Weights.load(tmp_path / "out").fingerprint() == tiny_weights(0).fingerprint()
    assert FoldConfig.from_json((tmp_path / "out" / FOLD_FILE).read_text()) == FOLD
