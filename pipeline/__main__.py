"""``tidewatch``: one command for each role.

A command is a module ``pipeline/<name>_command.py`` with ``add_arguments(parser)`` and ``run(args)``, which returns the
exit code. Only the chosen one is imported, so that ``tidewatch --help`` need not wait for torch. Its first paragraph is
the description in its help, and ``EXAMPLES``, where it has one, the end of it.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Protocol, cast

from pipeline import __version__
from pipeline.errors import ConfigurationError, TidewatchError, TransientError
from pipeline.logs import configure_logging

_OWN_NAME = re.compile(r"^``tidewatch \w+``: ")

EXIT_ERROR = 1
EXIT_CONFIGURATION = 2  # argparse's own code for a wrong command line
EXIT_TRANSIENT = 3
EXIT_INTERRUPTED = 130
OF_ONE_SHOT = "warning"
FULL = (errno.ENOSPC, errno.EDQUOT)  # which a write says without a name


@dataclass(frozen=True, slots=True)
class Command:
    """A line of ``tidewatch --help``; ``log_level`` is what the command says by itself on stderr."""

    help: str
    example: str
    log_level: str = OF_ONE_SHOT

    def module_name(self, name: str) -> str:
        """Where the command lives."""
        return f"pipeline.{name}_command"


COMMANDS = {
    "demo": Command(
        "see it work: real Kafka and Redis on this machine, faults planted, alerts shown",
        "tidewatch demo",
        log_level="error",
    ),
    "servers": Command("run an embedded Kafka and Redis to try things on", "tidewatch servers", log_level="info"),
    "check": Command(
        "check settings, servers and model versions before a worker runs",
        "tidewatch check --settings tidewatch.toml",
    ),
    "topics": Command(
        "show the topics that the settings name, and create the missing ones",
        "tidewatch topics --settings tidewatch.toml --create",
    ),
    "worker": Command(
        "consume, score and emit until told to stop", "tidewatch worker --settings tidewatch.toml", log_level="info"
    ),
    "monitor": Command(
        "watch for streams that have gone silent, and show open alerts to Prometheus",
        "tidewatch monitor --settings tidewatch.toml",
        log_level="info",
    ),
    "learner": Command(
        "learn the shared weights from live streams, and promote what predicts better",
        "tidewatch learner --settings tidewatch.toml",
        log_level="info",
    ),
    "models": Command("list, compare, promote and roll back model versions", "tidewatch models list"),
    "alerts": Command("list, show or follow alerts in the terminal", "tidewatch alerts list --since 1d"),
    "notify": Command(
        "tell people about alerts, by a webhook or by Alertmanager",
        "tidewatch notify --settings tidewatch.toml",
        log_level="info",
    ),
    "replay": Command("play recordings through Kafka or straight through the engine", "tidewatch replay pump.csv"),
    "record": Command("write a live topic, or a range of it, to a recording", "tidewatch record --help"),
    "explain": Command("show why there was an alert, or why there was none", "tidewatch explain --help"),
    "streams": Command("list, show, reset or forget streams while workers run", "tidewatch streams list"),
    "train": Command("fit a predictor on recordings, with a report", "tidewatch train pump.csv --out weights/pump"),
    "rescore": Command(
        "judge complete recordings by what came before and after each value",
        "tidewatch rescore pump.csv --out surprises.csv",
    ),
    "evaluate": Command(
        "measure detection on labelled recordings, compared with controls", "tidewatch evaluate RECORDINGS --quick"
    ),
    "schema": Command("print the JSON Schema of the messages", "tidewatch schema window"),
    "bench": Command("measure this machine", "tidewatch bench --quick"),
    "pretrain": Command("train a predictor on generated series", "tidewatch pretrain --out weights"),
}


class CommandModule(Protocol):
    """What a command's module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own options."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    int
        The command's own code; 1 where it was ended by an error, 2 for wrong settings or a wrong command line, 3 where
        a server did not answer, 130 for Ctrl-C. Errors of Tidewatch, of files and of full disks are one line on stderr,
        and a traceback only with ``--debug``; anything else is a bug and shows its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if word in COMMANDS), None)
    try:
        module = None if chosen is None else import_module(COMMANDS[chosen].module_name(chosen))
    except KeyboardInterrupt:  # importing torch takes seconds, long enough to think better of it
        return EXIT_INTERRUPTED
    parser = build_parser(chosen, module)
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help()
        return EXIT_CONFIGURATION
    assert module is not None
    asked = "debug" if args.debug else args.log_level
    configure_logging(asked or COMMANDS[args.command].log_level)
    if asked is None and COMMANDS[args.command].log_level == OF_ONE_SHOT:
        # Its ten lines a second while a broker is away say no more than the one line that the command ends with.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
    try:
        return cast(CommandModule, module).run(args)
    except TidewatchError as error:
        if args.debug:
            raise
        print(f"tidewatch {args.command}: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        if args.debug:
            raise
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough of it (`| head`); what is left must not be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.debug or not (error.filename is not None or error.errno in FULL):
            raise
        print(f"tidewatch {args.command}: {_about_files(error)}", file=sys.stderr)
        return EXIT_ERROR


def exit_code(error: TidewatchError) -> int:
    """What a process that ends by ``error`` answers its caller."""
    if isinstance(error, ConfigurationError):
        return EXIT_CONFIGURATION
    return EXIT_TRANSIENT if isinstance(error, TransientError) else EXIT_ERROR


def _about_files(error: OSError) -> str:
    what = str(error.strerror or error)
    return f"{what[:1].lower()}{what[1:]}" if error.filename is None else f"{error.filename}: {what}"


def build_parser(chosen: str | None, module: ModuleType | None) -> argparse.ArgumentParser:
    """The parser of all commands; only the chosen one knows its own options."""
    parser = argparse.ArgumentParser(
        prog="tidewatch",
        description="Streaming anomaly detection: windows in from Kafka, stateful predictors, calibrated alerts out.",
        epilog=_first_steps(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_common()],
        allow_abbrev=False,
    )
    parser.set_defaults(debug=False, log_level=None)
    parser.add_argument("--version", action="version", version=f"tidewatch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        its = commands.add_parser(
            name,
            help=command.help,
            description=_description(command, module if name == chosen else None),
            epilog=_examples(command, module if name == chosen else None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[_common()],
            allow_abbrev=False,
        )
        if name == chosen and module is not None:
            cast(CommandModule, module).add_arguments(its)
    return parser


def _common() -> argparse.ArgumentParser:
    """Options that may stand before or after the command."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--debug", action="store_true", help="log everything, and show tracebacks of errors")
    common.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="how much to log on stderr")
    return common


def _first_steps() -> str:
    return """\
first steps:
  tidewatch demo                              see it work on this machine
  tidewatch servers                           a Kafka and a Redis to try things on
  tidewatch check --settings tidewatch.toml   is everything ready?
  tidewatch worker --settings tidewatch.toml  score; metrics on http://127.0.0.1:9464/metrics
  tidewatch check --row sensor                what a stream costs in memory

Each command has its own --help. Settings come from a TOML file and from TIDEWATCH_<SECTION>__<KEY>, for example
TIDEWATCH_KAFKA__GROUP=test; KAFKA_BOOTSTRAP_SERVERS and REDIS_URL are understood as well.
"""


def _description(command: Command, module: ModuleType | None) -> str:
    text = (module.__doc__ or "").strip() if module is not None else ""
    plain = _OWN_NAME.sub("", text).replace("``", "") or command.help
    return plain[0].upper() + plain[1:]


def _examples(command: Command, module: ModuleType | None) -> str:
    more = getattr(module, "EXAMPLES", "") if module is not None else ""
    return more or f"example:\n  {command.example}"


if __name__ == "__main__":
    sys.exit(main())
