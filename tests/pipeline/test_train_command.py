"""``tidewatch train``: one command from a recording to weights, a report and a checkpoint."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.config import PredictorConfig
from models.fitting import Recipe
from models.judging import Judgement
from models.peers import ALONE
from models.pretrained import MANIFEST_FILE, WEIGHTS_FILE, Weights
from models.split import Plan, Series, split_of
from pipeline import train_command
from pipeline.__main__ import EXIT_CONFIGURATION, main
from pipeline.errors import VersionError
from pipeline.offline import Offline
from pipeline.registry import Registry
from pipeline.replay.inputs import Chosen, load_streams
from pipeline.settings import Settings
from pipeline.sources.recording import RecordedStream
from pipeline.train.report import notes
from pipeline.train.search import Trial, search
from pipeline.train_command import CHECKPOINT_FILE, series_of
from tests.builders import make_profile

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LENGTH = 400
TINY = (
    "--hidden", "6", "--epochs", "2", "--segment", "128", "--batch", "4", "--rate", "0.01", "--quick-tails",
    "--cell", "rnn", "--threads", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """A wave with noise, minute by minute."""
    noise = np.random.default_rng(1).normal(0, 0.05, LENGTH)
    lines = ["time,value"]
    for t in range(LENGTH):
        stamp = f"2026-01-01T{t // 60:02d}:{t % 60:02d}:00Z"
        lines.append(f"{stamp},{math.sin(2 * math.pi * t / 24) + noise[t]:.4f}")
    path = tmp_path_factory.mktemp("recordings") / "pump.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(recording, tmp_path_factory) -> Path:
    """The folder of a run."""
    out = tmp_path_factory.mktemp("out")
    assert main(["train", str(recording), "--out", str(out), *TINY, "--tensorboard", str(out / "events")]) == 0
    return out


def test_a_run_leaves_weights_manifest_pictures_events_and_a_checkpoint(trained):
    """Whoever asks months later how the weights came to be finds it beside them."""
    weights = Weights.load(trained)
    assert weights.predictor == PredictorConfig("rnn", hidden=6)
    about = json.loads((trained / MANIFEST_FILE).read_text())["about"]
    assert about["seed"] == 1
    assert about["recipe"]["epochs"] == len(about["loss_per_epoch"]) == len(about["loss_validation"]) == 2
    for picture in ("losses.png", "forecasts.png", "residuals.png"):
        assert (trained / picture).read_bytes()[:4] == b"\x89PNG"
    assert len(list((trained / "events").glob("events.out.tfevents.*"))) == 1
    assert (trained / "checkpoint.safetensors").is_file()


def test_the_report_stands_beside_its_controls(trained):
    """A forecast error alone says nothing: last value and AR are in the same table, with skill in percent."""
    page = (trained / "report.html").read_text()
    for words in ("trained", "naive", "AR(20)", "ridge regression", "MAE", "RMSE", "MSE", " %", "losses.png"):
        assert words in page
    assert Weights.load(trained).fingerprint() in page


def test_tensorboard_can_read_the_events(trained):
    """The same losses as in the manifest, under readable names, one for each epoch."""
    events = EventAccumulator(str(trained / "events")).Reload()
    about = json.loads((trained / MANIFEST_FILE).read_text())["about"]
    for tag, key in (("loss/train", "loss_per_epoch"), ("loss/validation", "loss_validation")):
        assert [e.step for e in events.Scalars(tag)] == [1, 2]
        assert [e.value for e in events.Scalars(tag)] == pytest.approx(about[key], abs=1e-4)
    assert events.Scalars("learning_rate")[0].value == pytest.approx(0.01)


def test_the_report_compares_with_what_the_profile_names_now(trained):
    """Training is worth it where it beats the predictor in use, here the shipped one."""
    page = (trained / "report.html").read_text()
    assert "<td>before</td>" in page
    assert "over before" in page


def test_what_the_table_does_not_show_is_named_beneath_it():
    """Figures without a word about what they leave out mislead."""
    assert notes(Judgement({}, np.ones(1, np.float32), ()), ["a: x"]) == []
    nothing, left_out = notes(Judgement({}, np.zeros(0, np.float32), (), (1,)), ["a: x", "b: y"])
    assert "nothing to judge on" in nothing
    assert left_out.endswith(": b: y.")


def test_a_finished_run_resumes_to_itself(trained, recording, capsys):
    """Resuming what is over changes nothing: the same weights under the same name."""
    before = Weights.load(trained).fingerprint()
    assert main(["train", str(recording), "--out", str(trained), *TINY, "--resume"]) == 0
    assert Weights.load(trained).fingerprint() == before
    assert "resumed after epoch 2" in capsys.readouterr().out


@pytest.mark.parametrize("left", [WEIGHTS_FILE, CHECKPOINT_FILE])
def test_an_earlier_run_is_not_replaced_unasked(recording, tmp_path, capsys, left):
    """A profile may name these weights, and hours of learning are in a checkpoint: --resume was only forgotten."""
    (tmp_path / left).write_bytes(b"earlier")
    assert main(["train", str(recording), "--out", str(tmp_path), *TINY]) == EXIT_CONFIGURATION
    assert f"{tmp_path / left} exists" in capsys.readouterr().err
    assert (tmp_path / left).read_bytes() == b"earlier"
    assert main(["train", str(recording), "--out", str(tmp_path), *TINY, "--force"]) == 0
    assert (tmp_path / left).read_bytes() != b"earlier"


@pytest.mark.parametrize(
    ("base", "words", "text"),
    [
        (None, ["--hidden", "7"], "has hidden 6"),
        (None, ["--cell", "gru"], "has cell rnn"),
        (None, ["--layers", "2"], "has layers 1"),
        (None, ["--scope", "stream"], "has scope 'feature'"),
        (3, [], "sees 3 features at once"),
    ],
)
def test_a_base_of_another_shape_is_refused(trained, recording, tmp_path, capsys, base, words, text):
    """It decides the shape: what was asked for beside it would be left out silently."""
    folder = trained
    if base is not None:
        folder = tmp_path / "wide"
        Weights.random(PredictorConfig("rnn", 6, scope="stream", features=base)).save(folder)
    command = ["train", str(recording), "--out", str(tmp_path / "out"), *TINY, "--start-from", str(folder), *words]
    assert main(command) == EXIT_CONFIGURATION
    assert text in capsys.readouterr().err


def test_weights_that_no_epoch_beats_are_kept_and_named(trained, recording, tmp_path, capsys):
    """Whoever tunes with too high a rate gets no worse predictor than before, and is told that nothing was won."""
    ruinous = [*TINY, "--rate", "5", "--last-rate", "5", "--gradient-norm", "1e9"]
    shape = ruinous.index("--hidden"), ruinous.index("--cell")
    words = [word for place, word in enumerate(ruinous) if place not in (*shape, *(one + 1 for one in shape))]
    assert main(["train", str(recording), "--out", str(tmp_path), "--start-from", str(trained), *words]) == 0
    base, kept = Weights.load(trained), Weights.load(tmp_path)
    assert all(torch.equal(kept.network[name], tensor) for name, tensor in base.network.items())
    said = "none of 2 epochs is better than the weights it began with: these are kept"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "report.html").read_text()
    about = json.loads((tmp_path / MANIFEST_FILE).read_text())["about"]
    assert about["best_epoch"] == 0
    assert about["loss_validation_before"] < min(about["loss_validation"])


@pytest.mark.parametrize("option", ["--out", "--tensorboard"])
@pytest.mark.parametrize("inside", ["", "inside"])
def test_folders_that_cannot_be_written_are_named(recording, tmp_path, capsys, option, inside):
    """One line before the first epoch, not a traceback after the last."""
    (tmp_path / "file").write_text("in the way")
    wrong = tmp_path / "file" / inside
    words = ["--out", str(tmp_path / "out"), *TINY, option, str(wrong)]
    assert main(["train", str(recording), *words]) == EXIT_CONFIGURATION
    assert f"{wrong}: nothing can be written there" in capsys.readouterr().err


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """Two waves side by side."""
    noise = np.random.default_rng(2).normal(0, 0.05, (LENGTH, 2))
    lines = ["time,left,right"]
    for t in range(LENGTH):
        left, right = math.sin(2 * math.pi * t / 24) + noise[t, 0], math.cos(2 * math.pi * t / 24) + noise[t, 1]
        lines.append(f"2026-01-01T{t // 60:02d}:{t % 60:02d}:00Z,{left:.4f},{right:.4f}")
    path = tmp_path_factory.mktemp("recordings") / "pair.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_two_processes_learn_what_one_does(pair, tmp_path):
    """Under torchrun, over gloo: the same losses, with dropout and with a last batch too small for two to share."""
    words = [*TINY, "--scope", "stream", "--dropout", "0.2", "--segment", "30", "--batch", "7", "--device", "cpu"]
    assert main(["train", str(pair), "--out", str(tmp_path / "one"), *words]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "pipeline", "train", str(pair), "--out", str(tmp_path / "two"), *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("report.html") == 1, "one process speaks"
    one, two = (json.loads((tmp_path / name / MANIFEST_FILE).read_text())["about"] for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for losses in ("loss_per_epoch", "loss_validation"):
        # float32 sums in another order, over a dozen steps of Adam
        np.testing.assert_allclose(one[losses], two[losses], rtol=0, atol=2e-4)
    networks = [Weights.load(tmp_path / name).network for name in ("one", "two")]
    for name, tensor in networks[0].items():
        np.testing.assert_allclose(tensor.numpy(), networks[1][name].numpy(), rtol=0, atol=2e-4, err_msg=name)


def test_a_profile_chooses_how_features_are_seen(pair, tmp_path):
    """``scope = "stream"``: training makes one predictor of all features, serving takes it and refuses any other."""
    settings = tmp_path / "tidewatch.toml"
    settings.write_text(
        '[profiles.pair]\ntopics = ["pairs"]\nfeatures = ["left", "right"]\ninterval_s = 60\nscope = "stream"\n'
        'alarm_budget = "1 per day"\n'
    )
    words = ["--settings", str(settings), "--profile", "pair", "--out", str(tmp_path / "out")]
    assert main(["train", str(pair), *words, *TINY]) == 0
    assert Weights.load(tmp_path / "out").predictor == PredictorConfig("rnn", 6, scope="stream", features=2)
    profile = Settings.load(settings).profiles["pair"]
    with pytest.raises(VersionError, match="train one that sees all features at once"):
        Offline("pair", profile)
    offline = Offline("pair", profile.model_copy(update={"predictor": str(tmp_path / "out")}))
    (stream,) = load_streams([pair], Chosen())
    scores = np.concatenate([s.score for absorbed in offline.score_streams([stream]) for s in absorbed.scores])
    assert len(scores) == LENGTH
    assert np.isfinite(scores).all()


def test_a_version_is_published_but_not_served(recording, tmp_path, monkeypatch, capsys):
    """Training must not change what a running worker serves: that is a decision of its own."""
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "tidewatch.toml"
    settings.write_text(
        f'[registry]\nfolder = "{tmp_path / "models"}"\n'
        '[profiles.pump]\ntopics = ["pumps"]\nfeatures = ["value"]\ninterval_s = 60\nalarm_budget = "1 per day"\n'
    )
    words = ["--settings", str(settings), "--profile", "pump", "--publish", "--out", str(tmp_path / "out")]
    assert main(["train", str(recording), *words, *TINY]) == 0
    registry = Registry(tmp_path / "models")
    (version,) = registry.versions("pump")
    assert registry.load("pump", version)[0].fingerprint() == Weights.load(tmp_path / "out").fingerprint()
    assert registry.current("pump") is None
    assert "of another shape" in capsys.readouterr().out


def test_a_search_chooses_by_the_validation_part(recording, tmp_path, capsys):
    """What was found is what is trained, and the manifest says so."""
    words = ["--search", "3", "--out", str(tmp_path), *TINY]
    assert main(["train", str(recording), *words]) == 0
    said = capsys.readouterr().out
    trials = [float(loss) for loss in re.findall(r"validation loss (-?[\d.]+), done", said)]
    assert 1 <= len(trials) <= 3
    assert float(re.findall(r"kept, validation loss (-?[\d.]+)", said)[0]) == pytest.approx(min(trials), abs=1e-3)
    recipe = json.loads((tmp_path / MANIFEST_FILE).read_text())["about"]["recipe"]
    assert recipe["rate"] != 0.01
    assert recipe["l2"] > 0


def test_what_a_search_found_can_be_resumed(recording, tmp_path, monkeypatch, capsys):
    """The command it prints has every digit: a checkpoint is of those very options."""
    monkeypatch.setattr(train_command, "_write", lambda *_: None)
    words = ["train", str(recording), "--out", str(tmp_path), *TINY, "--epochs", "1", "--search", "1"]
    assert main(words) == 0
    (found,) = re.findall(r"to go on after a stop: .* (--search 0 .*)", capsys.readouterr().out)
    assert main([*words, *found.split()]) == 0
    assert "resumed after epoch 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "of_day", "of_week"),
    [
        ({}, True, True),
        ({"light": True}, False, False),
        ({"clock": False}, False, False),
        ({"evidence": "jump"}, True, False),
    ],
)
def test_a_predictor_learns_from_what_rows_of_the_profile_remember(changed, of_day, of_week):
    """Inputs that are there in training and 0 when serving teach the wrong thing."""
    stream = RecordedStream("s", ("value",), 60.0, np.arange(3) * 60_000, np.zeros((3, 1), np.float32))
    made = series_of(stream, make_profile(**changed))
    assert (made.has_clock, made.has_week) == (of_day, of_week)


def test_a_search_gives_up_what_falls_behind():
    """Pruning: a trial that is worse than half of the others at the same epoch costs no further epochs."""
    t = torch.arange(LENGTH)
    values = torch.sin(2 * math.pi * t / 24).unsqueeze(1) + 0.05 * torch.randn(
        LENGTH, 1, generator=torch.Generator().manual_seed(1)
    )
    split = split_of(
        [Series("s", 60_000 * t, values, 60.0, has_clock=False, has_week=False)], "feature", Plan(segment=120)
    )
    heard: list[Trial] = []
    recipe = Recipe(epochs=4, rate=0.1, batch=4)
    predictor, found = search(PredictorConfig("rnn", hidden=4), recipe, split, 12, ALONE, heard.append)
    cut, ended = ([trial for trial in heard if trial.is_cut == is_cut] for is_cut in (True, False))
    assert len(cut) >= 3
    assert all(2 <= trial.epochs < 4 for trial in cut)
    best = min(ended, key=lambda trial: trial.loss)
    assert (predictor.hidden, found.rate) == (best.options["hidden"], best.options["rate"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--layers", "5"], "1 to 4 layers"),
        (["--dropout", "1"], "--dropout"),
        (["--train", "0.9", "--validation", "0.2"], "must leave"),
        (["--resume"], "no run to go on with"),
        (["--search", "2", "--resume"], "--search"),
        (["--publish"], "no profile there fits"),
        (["--last-rate", "-0.05"], "--last-rate"),
        (["--rate", "nan"], "--rate"),
        (["--seed", "-1"], "--seed"),
        (["--validation", "0.001"], "the validation part has no row"),
        (["--rate", "1e38", "--optimiser", "sgd", "--gradient-norm", "1e30"], "diverged"),
    ],
)
def test_impossible_wishes_are_refused(recording, tmp_path, capsys, words, text):
    """One line that says what is wrong, and no half-trained weights."""
    code = main(["train", str(recording), "--out", str(tmp_path / "out"), *TINY, *words])
    assert code == EXIT_CONFIGURATION
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()
