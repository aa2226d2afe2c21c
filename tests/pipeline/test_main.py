"""The command line: help, errors, exit codes, logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import pipeline
from pipeline.__main__ import COMMANDS, build_parser, exit_code, main
from pipeline.errors import BrokerAway, ConfigurationError, StoreAway, TidewatchError, VersionError, WorkerFenced
from pipeline.servers import free_port

ROOT = Path(__file__).parents[2]
WRITTEN = [name for name, command in COMMANDS.items() if find_spec(command.module_name(name)) is not None]


def test_every_command_module_is_in_the_table() -> None:
    """A command that nobody can call is not a command."""
    modules = {path.name.removesuffix("_command.py") for path in (ROOT / "pipeline").glob("*_command.py")}
    assert modules <= COMMANDS.keys()


@pytest.mark.parametrize("name", WRITTEN)
def test_every_command_has_a_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help is the first page anyone reads; it says what the command does and shows one way to call it."""
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: tidewatch {name}" in text
    assert f"  tidewatch {name}" in text.partition("example")[2]
    assert "``" not in text


@pytest.mark.parametrize("name", WRITTEN)
def test_examples_of_the_table_are_valid_command_lines(name: str) -> None:
    """A first step that ends in a usage error is worse than none."""
    command = COMMANDS[name]
    words = command.example.split()
    assert words[:2] == ["tidewatch", name]
    if words[-1] != "--help":
        module = sys.modules.get(command.module_name(name)) or __import__(command.module_name(name), fromlist=["run"])
        assert build_parser(name, module).parse_args(words[1:]).command == name


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`tidewatch` alone shows what there is, and fails, as a script that forgot the command should."""
    assert main([]) == 2
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n    {name} " in text


def test_help_does_not_wait_for_torch() -> None:
    """Seconds of imports before a help page appears feel broken."""
    script = (
        "import sys\n"
        "from pipeline.__main__ import main\n"
        "main([])\n"
        "heavy = {'torch', 'numpy', 'kafka', 'redis', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_wrong_settings_are_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An operator reads what to change, not a traceback."""
    settings = tmp_path / "tidewatch.toml"
    settings.write_text("nonsense = 1\n")
    assert main(["check", "--row", "sensor", "--settings", str(settings)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tidewatch check: ")
    assert "nonsense: unknown key" in error
    assert "Traceback" not in error


def test_a_full_disk_is_one_line_and_code_1() -> None:
    """It is the machine's trouble, not a bug of ours, and whoever reads a traceback looks for one."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-u", "-m", "pipeline", "schema", "window"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "tidewatch schema: no space left on device\n")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo takes most of a minute, and its summary is what it is for."""
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file" / "demo")]) == 2
    assert "nothing can be written there" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """With --debug, before or after the command, the error comes with its way."""
    missing = str(tmp_path / "missing.toml")
    for words in (["--debug", "check", "--row", "sensor"], ["check", "--row", "sensor", "--debug"]):
        with pytest.raises(ConfigurationError):
            main([*words, "--settings", missing])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (VersionError("x"), 2),
        (BrokerAway("x"), 3),
        (StoreAway("x"), 3),
        (WorkerFenced("x"), 1),
        (TidewatchError("x"), 1),
    ],
)
def test_exit_codes_tell_what_to_do(error: TidewatchError, code: int) -> None:
    """A supervisor restarts on 3 and pages a person on 2."""
    assert exit_code(error) == code


def test_a_broker_that_is_away_is_one_line() -> None:
    """The client's own log of each attempt buried it under forty others."""
    away = {"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}", "TIDEWATCH_KAFKA__CALL_DEADLINE_S": "1"}
    words = [sys.executable, "-m", "pipeline", "topics"]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | away, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1


def test_schema_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The published schema can be piped into any validator."""
    assert main(["schema", "window"]) == 0
    assert "stream_id" in json.loads(capsys.readouterr().out)["properties"]
    assert main(["schema"]) == 0
    assert {"window", "alert"} <= json.loads(capsys.readouterr().out).keys()


def test_a_reader_that_has_enough_is_no_error() -> None:
    """`tidewatch schema | head -1` ends quietly."""
    line = f"{sys.executable} -m pipeline schema | head -c 1"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{", "")


def test_version_is_the_projects() -> None:
    """One release has one number."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pipeline.__version__ == project["version"]


def test_public_names_exist() -> None:
    """Everything the package promises can be imported from it, and nothing else can."""
    for name in pipeline.__all__:
        found = getattr(pipeline, name)
        assert name == "__version__" or (found.__name__, found.__module__.split(".")[0]) == (name, "pipeline")
    with pytest.raises(AttributeError):
        pipeline.nothing  # noqa: B018
