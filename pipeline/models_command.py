"""``tidewatch models``: list, compare, promote, roll back, pin and move the model versions of a registry.

A version is a set of weights together with the profile settings that enter the fold, and is named after its content.
Running workers follow a promotion or a rollback within seconds, each partition at a quiet commit. A learner leaves a
promotion by hand alone; "pin" keeps it from changing what is served at all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch

from models.compression import Form, narrowed
from models.row import RowLayout
from pipeline.clock import SystemClock
from pipeline.compression import effect_of, trial_streams
from pipeline.errors import ConfigurationError, VersionError
from pipeline.profile import Profile
from pipeline.registry import Decision, Registry, base_weights
from pipeline.replay.inputs import Chosen, load_streams
from pipeline.settings import Settings
from pipeline.settings_option import add_settings_option
from pipeline.sources.recording import RecordedStream
from pipeline.versions_in_use import versions_in_use
from pipeline.wiring import build_cluster

BY = "operator"

EXAMPLES = """\
examples:
  tidewatch models list
  tidewatch models history --profile sensor
  tidewatch models diff 0a1b2c3d4e5f 5f4e3d2c1b0a
  tidewatch models promote 0a1b2c3d4e5f
  tidewatch models rollback --profile sensor
  tidewatch models compress 0a1b2c3d4e5f --form bf16
  tidewatch models export 0a1b2c3d4e5f --to model-for-the-other-site
  tidewatch models import model-for-the-other-site --profile sensor
  tidewatch models retrain --profile sensor

The first digits of a version's name are enough where no other version begins with them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands, each with the common options."""
    common = argparse.ArgumentParser(add_help=False)
    add_settings_option(common)
    common.add_argument(
        "--profile", help="which profile; optional if the version name implies it or only one profile exists"
    )
    common.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)

    def action(name: str, text: str, *versions: str) -> argparse.ArgumentParser:
        its = actions.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)
        for version in versions:
            its.add_argument(version, metavar=version.upper())
        return its

    action("list", "versions of every profile, oldest first")
    action("show", "what is known about a version", "version")
    action("diff", "how two versions of a profile differ", "version", "other")
    action("promote", "serve a version from now on", "version")
    back = action("rollback", "go back to the version that was served before the current one")
    back.add_argument("--to", metavar="VERSION", help="go back to this version instead")
    pin = action("pin", "keep a learner from changing what is served")
    pin.add_argument("--off", action="store_true", help="allow it again")
    action("retrain", "ask the running learner to train harder now, and to try the result in shadow")
    action("export", "copy a version into a new folder", "version").add_argument(
        "--to", type=Path, required=True, help="new folder"
    )
    its = action("compress", "store a version in fewer bits, unless that changes too many verdicts", "version")
    its.add_argument(
        "--form", choices=get_args(Form), default="bf16", help="number format of the matrices (default: bf16)"
    )
    its.add_argument(
        "--bound",
        type=float,
        default=0.02,
        help="largest share of the anomalous verdicts that may change (default: 0.02)",
    )
    its.add_argument(
        "--on",
        type=Path,
        nargs="+",
        metavar="RECORDING",
        help="recordings to measure on (default: a generated plant with a fault in half of its sensors)",
    )
    its = action("import", "publish the weights in a folder as a version of a profile")
    its.add_argument("folder", type=Path)
    action("history", "every decision with its figures").add_argument(
        "--last", type=int, metavar="N", default=0, help="only the last N (default: all)"
    )
    prune = action("prune", "delete versions that no live history names (asks Kafka)")
    prune.add_argument("--keep", type=int, metavar="N", help="newest versions to keep (default: learner.keep_versions)")


def run(args: argparse.Namespace) -> int:
    """Do one action; returns the exit code."""
    settings = Settings.load(args.settings)
    registry = Registry(settings.registry.folder)
    ACTIONS[args.action](args, settings, registry)
    return 0


# ---------------------------------------------------------------- looking


def _list(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    rows = [_summary(registry, name, v) for name in _profiles(args, settings) for v in registry.versions(name)]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    lines: list[tuple[str, ...]] = [("PROFILE", "VERSION", "STATE", "MADE BY", "PARENT", "LOSS", "LAYOUT")]
    lines += [
        tuple(str(row[key]) for key in ("profile", "version", "state", "made_by", "parent", "loss", "layout"))
        for row in rows
    ]
    _table(lines)
    if not rows:
        print("no versions yet: a worker publishes the first one at its start")


def _summary(registry: Registry, profile: str, version: str) -> dict[str, Any]:
    row = {"profile": profile, "version": version, "made_by": "", "parent": "", "loss": "", "layout": ""}
    states = ["served"] if registry.current(profile) == version else []
    states += ["pinned"] if states and registry.is_pinned(profile) else []
    try:
        weights, fold = registry.load(profile, version)
    except VersionError:
        return {**row, "state": " ".join([*states, _why_refused(registry, profile, version)])}
    about = weights.manifest
    return {
        **row,
        "state": " ".join(states),
        "made_by": about.get("made_by", "pretraining" if "seed" in about else ""),
        "parent": about.get("parent", ""),
        "loss": about.get("loss_progressive", about.get("loss_held_out", "")),
        "layout": RowLayout(fold, weights.predictor).id,
    }


def _why_refused(registry: Registry, profile: str, version: str) -> str:
    try:
        registry.read(profile, version)
    except VersionError:
        return "damaged"
    return "other layout"


def _show(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    profile, version = _find(args, settings, registry, args.version)
    weights, fold = registry.load(profile, version)
    shown = {
        **_summary(registry, profile, version),
        "weights": weights.fingerprint(),
        "predictor": asdict(weights.predictor),
        "settings": asdict(fold),
        "pooled": asdict(weights.pooled),
        "about": weights.manifest,
        "decisions": [asdict(d) for d in registry.history(profile) if version in (d.version, d.parent)],
    }
    if args.json:
        print(json.dumps(shown, indent=1))
        return
    for key, value in shown.items():
        if key != "decisions":
            _print_nested(key, value)
    _print_history([d for d in registry.history(profile) if version in (d.version, d.parent)])


def _diff(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    profile, one = _find(args, settings, registry, args.version)
    _, two = _find(args, settings, registry, args.other)
    (weights, fold), (others, other_fold) = registry.load(profile, one), registry.load(profile, two)
    found: dict[str, Any] = {
        "settings": _changed(asdict(fold), asdict(other_fold)),
        "predictor": _changed(asdict(weights.predictor), asdict(others.predictor)),
        "pooled": _changed(asdict(weights.pooled), asdict(others.pooled)),
        "about": _changed(weights.manifest, others.manifest),
        "rows": _rows_carried(RowLayout(fold, weights.predictor), RowLayout(other_fold, others.predictor)),
    }
    if weights.predictor == others.predictor:
        tensors = {"mu0": (weights.mu0, others.mu0), "P0": (weights.P0, others.P0)}
        tensors |= {name: (t, others.network[name]) for name, t in weights.network.items()}
        found["relative change"] = {
            name: round(float(torch.linalg.vector_norm(b - a) / torch.linalg.vector_norm(a).clamp_min(1e-30)), 5)
            for name, (a, b) in tensors.items()
        }
    if args.json:
        print(json.dumps({"from": one, "to": two, **found}, indent=1))
        return
    print(f"{profile}: {one} -> {two}")
    for key, value in found.items():
        _print_nested(key, value if value else "equal")


def _changed(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    return {key: f"{one.get(key)} -> {two.get(key)}" for key in sorted({*one, *two}) if one.get(key) != two.get(key)}


def _rows_carried(one: RowLayout, two: RowLayout) -> str:
    """What becomes of the rows of running streams at a swap from one layout to the other."""
    if one.id == two.id:
        return "same layout: every number is carried"
    kept = {name for name, s in one.slices.items() if name in two.slices and two.slices[name].width == s.width}
    fresh = sorted(set(two.slices) - kept)
    return f"{len(kept)} of {len(two.slices)} slices are carried; fresh: {', '.join(fresh)}"


# ---------------------------------------------------------------- changing what is served


def _promote(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    profile, version = _find(args, settings, registry, args.version)
    _serve(args, settings, registry, profile, version, "promoted")


def _rollback(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    if args.to is not None:
        profile, version = _find(args, settings, registry, args.to)
    else:
        profile = _one_profile(args, settings)
        before = registry.served_before(profile)
        if before is None:
            raise ConfigurationError(
                f"profile {profile}: history names nothing that was served before; "
                + (_made_by_settings(settings, registry, profile) or "use --to VERSION")
            )
        version = before
    _serve(args, settings, registry, profile, version, "rolled back")


def _made_by_settings(settings: Settings, registry: Registry, profile: str) -> str | None:
    """How to go back where a worker made what is served, from weights that it had served with other settings."""
    found = {}
    for version in registry.versions(profile):
        with suppress(VersionError):  # damaged: nobody served that
            found[version] = registry.read(profile, version)
    current = registry.current(profile)
    if current not in found or found[current][1] != settings.profiles[profile].fold():
        return None
    weights, fold = found.pop(current)
    for version, (others, other_fold) in reversed(found.items()):
        if other_fold != fold and others.fingerprint() == weights.fingerprint():
            changed = ", ".join(f"{name} {how}" for name, how in _changed(asdict(other_fold), asdict(fold)).items())
            return (
                f"{current} is {version} with what the settings say now ({changed}), and --to {version} would be "
                "refused: change the settings back, and workers serve what they did before"
            )
    return None


def _serve(
    args: argparse.Namespace, settings: Settings, registry: Registry, profile: str, version: str, event: str
) -> None:
    before = registry.current(profile)
    if before == version:
        print(f"profile {profile}: {version} is served already")
        return
    weights, fold = registry.load(profile, version)
    wanted = settings.profiles[profile]
    if weights.predictor != base_weights(wanted.builtin() or wanted.predictor).predictor:
        raise ConfigurationError(
            f"version {version} is of another shape than the predictor of profile {profile}, {wanted.predictor!r}: the "
            "next worker to start would go back to that; set predictor to a folder with weights of this shape first "
            "(tidewatch models export makes one)"
        )
    if fold != settings.profiles[profile].fold():
        raise ConfigurationError(
            f"version {version} was made with other settings than profile {profile} has now "
            f"({', '.join(_changed(asdict(fold), asdict(settings.profiles[profile].fold())))}): the next worker would "
            "replace it; export it and import it again, or change the settings"
        )
    about, parent = (version, before) if event == "promoted" or before is None else (before, version)
    registry.note(profile, Decision(SystemClock().wall_ms(), event, about, BY, parent, "by hand"))
    registry.serve(profile, version)
    _say(args, f"profile {profile}: {version} is served; before: {before}", version=version, before=before)


def _pin(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    profile = _one_profile(args, settings)
    current = registry.current(profile)
    if current is None:
        raise ConfigurationError(f"profile {profile}: nothing is served yet")
    registry.pin(profile, not args.off)
    event = "unpinned" if args.off else "pinned"
    registry.note(profile, Decision(SystemClock().wall_ms(), event, current, BY, None, "by hand"))
    _say(args, f"profile {profile}: {event} at {current}", version=current)


def _retrain(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    profile = _one_profile(args, settings)
    if registry.current(profile) is None:
        raise ConfigurationError(f"profile {profile}: nothing is served yet")
    registry.ask_retrain(profile)
    _say(args, f"profile {profile}: asked; the learner says in the history when it begins")


# ---------------------------------------------------------------- moving


def _compress(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    profile, version = _find(args, settings, registry, args.version)
    weights, fold = registry.load(profile, version)
    knobs = settings.profiles[profile]
    if fold != knobs.fold():
        raise ConfigurationError(
            f"version {version} was made with other settings than profile {profile} has now "
            f"({', '.join(_changed(asdict(fold), asdict(knobs.fold())))}); change the settings, or export and import it"
        )
    if not 0 <= args.bound <= 1:
        raise ConfigurationError("--bound is a share, from 0 to 1")
    streams = trial_streams(knobs) if args.on is None else _recorded(args.on, knobs)
    torch.set_num_threads(1)  # the matrices are small: threads would wait for each other
    own = {"made_by": "tidewatch models compress", "parent": version}
    small = replace(narrowed(weights, args.form), manifest=own)
    effect = effect_of(profile, knobs, weights, small, streams)
    figures = {**asdict(effect), "changed_share": effect.changed_share, "bound": args.bound}
    found = (
        f"{args.form} changes {effect.changed} of {effect.anomalous} anomalous verdicts, {effect.changed_share:.1%} "
        f"(at most {args.bound:.1%}); scores of {effect.observations} observations differ by {effect.score_mean:.4f} "
        f"in the mean, {effect.score_most:.3f} at most"
    )
    if effect.anomalous == 0:
        raise ConfigurationError("nothing is anomalous in these recordings: they cannot show what changes; give others")
    if effect.changed_share > args.bound:
        raise ConfigurationError(f"{found}; nothing is written")
    about = {
        "form": args.form,
        "effect": figures,
        "measured_on": "a generated plant" if args.on is None else "recordings",
    }
    new = registry.publish(profile, replace(small, manifest={**small.manifest, **about}), fold, args.form)
    before, after = (registry.size_bytes(profile, name) for name in (version, new))
    reason = f"{args.form}, {before} to {after} bytes"
    registry.note(profile, Decision(SystemClock().wall_ms(), "compressed", new, BY, version, reason, figures))
    _say(
        args,
        f"{found}\n{before} -> {after} bytes; {effect.speed:.0f} -> {effect.speed_after:.0f} observations/s (weights "
        f"are widened when loaded: the same arithmetic)\nprofile {profile}: version {new}; serve it with: "
        f"tidewatch models promote {new}",
        version=new,
        size_bytes=after,
        size_bytes_before=before,
        **figures,
    )


def _recorded(paths: Sequence[Path], profile: Profile) -> list[RecordedStream]:
    streams = [stream for stream in load_streams(paths, Chosen()) if stream.features == profile.features]
    if not streams:
        raise ConfigurationError(f"no stream of these recordings has the features {', '.join(profile.features)}")
    return streams


def _export(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    profile, version = _find(args, settings, registry, args.version)
    registry.export(profile, version, args.to)
    _say(args, f"profile {profile}: {version} copied to {args.to}", version=version)


def _import(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    profile = _one_profile(args, settings)
    version = registry.bring_in(profile, args.folder, settings.profiles[profile].fold())
    registry.note(profile, Decision(SystemClock().wall_ms(), "imported", version, BY, None, str(args.folder)))
    _say(
        args,
        f"profile {profile}: version {version}; serve it with: tidewatch models promote {version}",
        version=version,
    )


def _prune(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    if args.keep is not None and args.keep < 1:  # the newest may be a candidate whose trial is running
        raise ConfigurationError("--keep must be at least 1")
    live = versions_in_use(build_cluster(settings), settings.kafka.group)
    if live is None:
        raise ConfigurationError("Kafka does not say which versions live histories name; nothing is deleted")
    keep = settings.learner.keep_versions if args.keep is None else args.keep
    for profile in _profiles(args, settings):
        prune(args, registry, profile, live, keep)


def prune(args: argparse.Namespace, registry: Registry, profile: str, live: set[str], keep: int) -> None:
    """Delete what nobody needs of a profile, and say so; for people also what was kept."""
    clock = SystemClock()
    removed = registry.remove_unused(profile, live, keep, clock.wall_ms() / 1000)
    for version in removed:
        registry.note(profile, Decision(clock.wall_ms(), "removed", version, BY, None, "named in no live history"))
        _say(args, f"profile {profile}: {version} removed", version=version)
    if not args.json:
        kept = registry.versions(profile)
        print(
            f"profile {profile}: {len(removed) or 'none'} of {len(removed) + len(kept)} versions removed; kept: those "
            f"in live histories ({len(live.intersection(kept))}), the newest {keep}, the served one, the one before it"
        )


def _history(args: argparse.Namespace, settings: Settings, registry: Registry) -> None:
    for profile in _profiles(args, settings):
        decisions = registry.history(profile)[-args.last :]
        if args.json:
            for decision in decisions:
                print(json.dumps({"profile": profile, **asdict(decision)}))
        elif decisions:
            print(f"profile {profile}")
            _print_history(decisions)
        else:
            print(f'profile {profile}: no decisions yet; a learner and "tidewatch models" write them down')


# ---------------------------------------------------------------- naming and printing


def _profiles(args: argparse.Namespace, settings: Settings) -> list[str]:
    if args.profile is None:
        return list(settings.profiles)
    if args.profile not in settings.profiles:
        raise ConfigurationError(f"no profile {args.profile!r}; there are {', '.join(settings.profiles)}")
    return [args.profile]


def _one_profile(args: argparse.Namespace, settings: Settings) -> str:
    profiles = _profiles(args, settings)
    if len(profiles) > 1:
        raise ConfigurationError(f"which profile? --profile {' | '.join(profiles)}")
    return profiles[0]


def _find(args: argparse.Namespace, settings: Settings, registry: Registry, name: str) -> tuple[str, str]:
    """The profile and the whole name of a version named by its first digits."""
    found = [(p, v) for p in _profiles(args, settings) for v in registry.versions(p) if v.startswith(name)]
    if not found:
        raise VersionError(f"no version {name!r}; tidewatch models list shows them")
    if len(found) > 1:
        raise ConfigurationError(f"{name!r} may be {', '.join(f'{v} of {p}' for p, v in found)}; say more")
    return found[0]


def _say(args: argparse.Namespace, text: str, **values: str | float | None) -> None:
    print(json.dumps(values) if args.json else text)


def _table(lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _print_nested(key: str, value: Any) -> None:
    if isinstance(value, dict):
        print(f"{key}:")
        for name, inner in value.items():
            print(f"  {name}: {inner}")
    else:
        print(f"{key}: {value}")


def _print_history(decisions: Sequence[Decision]) -> None:
    for decision in decisions:
        time = datetime.fromtimestamp(decision.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        parent = f" (from {decision.parent})" if decision.parent else ""
        print(f"{time}  {decision.event:<11} {decision.version}{parent} by {decision.by}: {decision.reason}")
        if decision.figures:
            print("    " + "  ".join(f"{name}={value:g}" for name, value in decision.figures.items()))


ACTIONS: dict[str, Callable[[argparse.Namespace, Settings, Registry], None]] = {
    "list": _list,
    "show": _show,
    "diff": _diff,
    "promote": _promote,
    "rollback": _rollback,
    "pin": _pin,
    "retrain": _retrain,
    "compress": _compress,
    "export": _export,
    "import": _import,
    "history": _history,
    "prune": _prune,
}
