"""Feed a Zeek host's live connection log to Tidewatch: counters of every local host, one window a minute.

    python zeek_host.py /opt/zeek/logs/current/conn.log --local 10.20.0.0/16 --bootstrap-servers kafka:9092

Needs the tidewatch package. Zeek writes a connection when it has ended, so flows are counted in the minute of their
end; those that come more than ``--max-delay`` seconds after it are counted in the oldest minute that is still open.
A restart begins at the end of the log: the minutes it missed are missing observations, not zeros.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from kafka import KafkaProducer

from pipeline.importers import ConnLog, HostCounters
from pipeline.wire import encode_packed


def follow(path: Path, wait: Callable[[], None]) -> Iterator[str | None]:
    """Header lines of a log and lines appended from now on, across rotations; ``None`` after each wait."""
    skip_to_end = True
    while True:
        try:
            with path.open("rb") as log:
                if skip_to_end:
                    while (line := log.readline()).startswith(b"#"):  # they name the fields
                        yield line.decode(errors="replace")
                    log.seek(0, os.SEEK_END)
                yield from _appended(log, path, wait)
        except FileNotFoundError:  # in the middle of a rotation
            wait()
            yield None
        skip_to_end = False


def _appended(log: BinaryIO, path: Path, wait: Callable[[], None]) -> Iterator[str | None]:
    """Complete lines of one file until another one has its name."""
    begun, is_replaced = b"", False
    while True:
        begun += log.readline()
        if begun.endswith(b"\n"):
            yield begun.decode(errors="replace")
            begun = b""
        elif is_replaced:  # seen before this last look into the old file, so nothing of it is missed
            return
        elif _is_replaced(log, path):
            is_replaced = True
        else:
            wait()
            yield None


def _is_replaced(log: BinaryIO, path: Path) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return True
    return not os.path.samestat(named, os.fstat(log.fileno())) or named.st_size < log.tell()


def main() -> None:
    """Read the log until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--bootstrap-servers", default="localhost:9092")
    parser.add_argument("--topic", default="network-windows")
    parser.add_argument("--local", action="append", metavar="NETWORK", help="networks to watch; default: private ones")
    parser.add_argument("--max-delay", type=float, default=120.0, metavar="SECONDS")
    options = parser.parse_args()

    networks = {"local": options.local} if options.local else {}
    counters = HostCounters(at="end", max_delay_s=options.max_delay, **networks)
    conn_log = ConnLog()
    producer = KafkaProducer(bootstrap_servers=options.bootstrap_servers, acks="all", linger_ms=50)
    for line in follow(options.log, lambda: time.sleep(1.0)):
        flows = [] if line is None else conn_log.read([line])
        closed = [window for flow in flows for window in counters.add(flow)]
        if line is None:
            closed = counters.advance(time.time())
        for host, times_ms, values, _ in closed:
            producer.send(options.topic, key=host.encode(), value=encode_packed(host, times_ms, values))


if __name__ == "__main__":
    main()
