"""Search for hyper-parameters with Optuna: a run that is worse than half of the others at the same epoch is cut off.

Needs the package optuna, the extra ``training``. Only the validation part decides; the test part judges what is trained
afterwards with the options found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from models.config import PredictorConfig
from models.fitting import Fit, Recipe, first_network
from models.peers import Peers
from models.split import Split
from models.training import Progress
from pipeline.errors import ConfigurationError

STARTUP = 3
"""Trials that are never cut off: there must be something to compare with."""

JUDGED_FROM = 2
"""The first epoch that may end a trial; the one before it says how fast it begins, not how far it comes."""

SEARCHED = ("rate", "last_rate", "dropout", "l2", "chunk")
"""What of a recipe a search may change."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of options and its best validation loss; ``is_cut`` where it was given up."""

    number: int
    options: Mapping[str, float | int]
    loss: float
    epochs: int
    is_cut: bool


Tell = Callable[[Trial], None]


def search(
    predictor: PredictorConfig, recipe: Recipe, split: Split, trials: int, peers: Peers, tell: Tell
) -> tuple[PredictorConfig, Recipe]:
    """Predictor and recipe of the best of some trials; the same seed searches the same way.

    Searched: rate, hidden (a quarter to twice what was asked for), dropout, l2, chunk. All else stays as given.

    Raises
    ------
    ConfigurationError
        Optuna is not installed, or no trial came to an end.
    """
    try:
        import optuna
    except ImportError as exc:
        raise ConfigurationError("--search needs Optuna: pip install 'tidewatch[training]'") from exc
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def options_of(trial: optuna.Trial) -> dict[str, float | int]:
        widths = sorted({max(3, predictor.hidden * factor // 4) for factor in (1, 2, 4, 8)})
        return {
            "rate": trial.suggest_float("rate", recipe.rate / 10, min(1.0, recipe.rate * 10), log=True),
            "hidden": trial.suggest_categorical("hidden", widths),
            "dropout": trial.suggest_float("dropout", 0.0, 0.4),
            "l2": trial.suggest_float("l2", 1e-7, 1e-2, log=True),
            "chunk": trial.suggest_categorical("chunk", [32, 64, 128, 256]),
        }

    def objective(trial: optuna.Trial) -> float:
        options = options_of(trial)
        wanted, how = chosen(predictor, recipe, options)
        fit = Fit(first_network(wanted, how.seed), split, how, peers)
        is_cut = False
        try:
            while not fit.is_over and not is_cut:
                fit.run_epoch(_nobody)
                trial.report(fit.history[-1].validation_loss, len(fit.history))
                is_cut = bool(trial.should_prune())
        except RuntimeError as exc:  # it diverged: a trial like any other, given up
            if "non-finite" not in str(exc):
                raise
            is_cut = True
        loss = min((epoch.validation_loss for epoch in fit.history), default=float("inf"))
        tell(Trial(trial.number + 1, options, loss, len(fit.history), is_cut))
        if is_cut:
            raise optuna.TrialPruned
        return loss

    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=recipe.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=JUDGED_FROM),
    )
    study.optimize(objective, n_trials=trials)
    ended = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not ended:
        raise ConfigurationError(f"none of {trials} trials came to an end; take a smaller --rate")
    return chosen(predictor, recipe, study.best_params)


def chosen(
    predictor: PredictorConfig, recipe: Recipe, options: Mapping[str, float | int]
) -> tuple[PredictorConfig, Recipe]:
    """Predictor and recipe with the options of a trial."""
    wanted = replace(predictor, hidden=int(options["hidden"]))
    how = replace(
        recipe,
        rate=float(options["rate"]),
        last_rate=min(recipe.last_rate, float(options["rate"])),
        dropout=float(options["dropout"]),
        l2=float(options["l2"]),
        chunk=int(options["chunk"]),
    )
    return wanted, how


def _nobody(progress: Progress) -> None:
    """Nobody listens."""
