"""``tidewatch servers``: run a real Kafka broker and a real Redis server for first steps, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from pipeline.servers import EmbeddedKafka, EmbeddedRedis

POLL_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/servers"), help="where both keep their data (default: runs/servers)"
    )
    parser.add_argument("--kafka-port", type=int, default=9092, help="0 chooses a free one (default: 9092)")
    parser.add_argument("--redis-port", type=int, default=6379, help="0 chooses a free one (default: 6379)")


def run(args: argparse.Namespace) -> int:
    """Start both, say where they are, wait for Ctrl-C or SIGTERM, stop both; returns the exit code.

    Raises
    ------
    ConfigurationError
        One of them cannot start; none is left running.
    """
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop in order, as for Ctrl-C
    try:
        with ExitStack() as running:
            with console.status("starting") as status:
                redis = EmbeddedRedis(args.folder / "redis", args.redis_port, status.update, durable=True)
                kafka = EmbeddedKafka(args.folder / "kafka", args.kafka_port, status.update)
                running.enter_context(redis)
                running.enter_context(kafka)
            console.print(f"Kafka {kafka.address} and Redis {redis.address}; data and logs in {args.folder}")
            console.print("In another terminal:\n")
            console.print(
                f"  export KAFKA_BOOTSTRAP_SERVERS={kafka.address} REDIS_URL={redis.address}\n", soft_wrap=True
            )
            console.print("Ctrl-C stops both.")
            while not (kafka.wait(POLL_S) or redis.wait(0.0)):
                pass
            ended = kafka if kafka.wait(0.0) else redis
            console.print(f"{ended.name} ended by itself; its log is {ended.log}")
            return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 0
