"""The option ``--settings`` of the commands that need settings."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_settings_option(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Let a command line name the settings file; as a path, or ``None``, for :meth:`pipeline.settings.Settings.load`.

    Parameters
    ----------
    default
        ``argparse.SUPPRESS`` where the option may stand before and after an action, so that its absence after the
        action does not undo what stood before it.
    """
    parser.add_argument(
        "--settings",
        type=Path,
        default=default,
        help="TOML file (default: $TIDEWATCH_CONFIG, else built-in defaults and the shipped profiles)",
    )
