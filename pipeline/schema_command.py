"""``tidewatch schema``: print the JSON Schema of the messages, for validators, generators and people."""

from __future__ import annotations

import argparse
import json

from pipeline.wire import json_schema

EXAMPLES = """\
examples:
  tidewatch schema window            what a producer writes
  tidewatch schema alert             what a consumer of alerts reads
  tidewatch schema > messages.json   all of them, by name
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which message."""
    names = list(json_schema())
    parser.add_argument("message", nargs="?", choices=names, help="which message (default: all)")


def run(args: argparse.Namespace) -> int:
    """Print one schema, or an object of all of them."""
    schemas = json_schema()
    print(json.dumps(schemas if args.message is None else schemas[args.message], indent=2))
    return 0
