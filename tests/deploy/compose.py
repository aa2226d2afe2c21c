"""docker-compose.yml without containers: the same commands, in its order, with its settings and environment.

What changes is what a container would have hidden: host names and ports become free ports of the loopback address,
mounted paths become the mounted places, and the programs of other images are those of pip and Debian. Kafka's
environment becomes server properties, as its image does it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from pipeline.servers import EmbeddedKafka, free_port
from tests.deploy.programs import prometheus, redis

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
DEADLINE_S = 100.0
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def load(environment: Mapping[str, str], path: Path = FILE) -> dict[str, Any]:
    """A compose file, its variables filled in."""

    def filled(found: re.Match[str]) -> str:
        return environment.get(found[1]) or found[2] or ""

    loaded: dict[str, Any] = yaml.safe_load(VARIABLE.sub(filled, path.read_text()))
    return loaded


def in_order(services: Mapping[str, Any]) -> list[str]:
    """Services, each after those it depends on."""
    done: list[str] = []
    while len(done) < len(services):
        ready = [
            name for name, it in services.items() if name not in done and set(it.get("depends_on", {})) <= set(done)
        ]
        assert ready, f"a circle of dependencies among {set(services) - set(done)}"
        done += ready
    return done


class Deployment:
    """The services of the file as processes; those in ``leave_out`` are not started.

    Parameters
    ----------
    folder
        Named volumes, files made for this run and logs.
    environment
        Variables of the compose file.
    extra
        Additional environment, by service: what a test must shorten.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        leave_out: frozenset[str] = frozenset(),
        extra: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.folder, self._extra = folder, extra or {}
        loaded = load(environment)
        self.services = {name: it for name, it in loaded["services"].items() if name not in leave_out}
        self._volumes = set(loaded["volumes"])
        self.ports = {
            "kafka:9092": free_port(), "redis:6379": free_port(), "prometheus:9090": free_port(),
            **{f"{name}:9464": free_port() for name, it in self.services.items() if "build" in it},
        }  # fmt: skip
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.started: list[str] = []
        self._kafka: EmbeddedKafka | None = None

    def up(self, *names: str) -> None:
        """Start these services, and wait for what each depends on, as ``docker compose up`` does."""
        for name in in_order(self.services):
            if name in names:
                for other, how in self.services[name].get("depends_on", {}).items():
                    self._wait_for(other, how["condition"])
                self._start(name)
                self.started.append(name)

    def wait_healthy(self, name: str) -> None:
        """Wait until the service's own health check passes."""
        test = self.services[name]["healthcheck"]["test"]
        assert test[0] == "CMD"
        self._until(lambda: self._is_healthy(name, test[1:]), name, f"{name} does not become healthy")

    def address(self, place: str) -> str:
        """Where ``service:port`` is here."""
        return f"127.0.0.1:{self.ports[place]}"

    def log(self, name: str) -> str:
        """What a service printed."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def once(self, name: str, *command: str) -> tuple[int, str]:
        """Run another command of ours in a service's place, as ``docker compose run --rm`` does; its code and words."""
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *command], cwd=self.root(name), env=self._environment(name),
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def stop(self, name: str) -> int:
        """Stop one service, gently at first; returns its exit code."""
        process = self.processes[name]
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(45)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def down(self) -> dict[str, int]:
        """Stop everything, last started first; returns exit codes."""
        codes = {name: self.stop(name) for name in reversed(self.processes)}
        if self._kafka is not None:
            self._kafka.stop()
        return codes

    # -- one service -------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        service = self.services[name]
        if name == "kafka":
            self._kafka = EmbeddedKafka(
                self.folder / "kafka", self.ports["kafka:9092"], properties=self._kafka_properties(service)
            )
            self._kafka.start()
            return
        command = [self._here(name, str(word)) for word in service["command"]]
        if "build" in service:
            command = [sys.executable, "-m", "pipeline", *command]
        elif name == "redis":
            command = [str(redis(command[0])), *command[1:], "--port", str(self.ports["redis:6379"])]
            command += ["--bind", "127.0.0.1", "--dir", str(self.volume("redis-data"))]
        elif name == "prometheus":
            self._write_prometheus_config()
            address = self.address("prometheus:9090")
            command = [str(prometheus("prometheus")), *command, f"--web.listen-address={address}"]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.root(name),
                env=self._environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _environment(self, name: str) -> dict[str, str]:
        """What a container of this service would have, and what a process on this machine needs."""
        service = self.services[name]
        environment = {key: self._here(name, str(value)) for key, value in service.get("environment", {}).items()}
        environment |= self._extra.get(name, {})
        if "build" in service:
            environment |= {"TIDEWATCH_HTTP__PORT": str(self.ports[f"{name}:9464"]), "PYTHONPATH": str(ROOT)}
            environment |= {"TIDEWATCH_HTTP__HOST": "127.0.0.1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
            environment |= {"PYTHONDONTWRITEBYTECODE": "1", "HOME": str(self.root(name))}
        return {key: os.environ[key] for key in ("PATH", "TMPDIR") if key in os.environ} | environment

    def root(self, name: str) -> Path:
        """Where a service begins: what it writes here, a container with a read-only file system could not."""
        path = self.folder / "roots" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def volume(self, name: str) -> Path:
        """A named volume."""
        assert name in self._volumes, f"{name} is not declared"
        path = self.folder / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _here(self, name: str, text: str) -> str:
        """A word of a command or a variable, with the places a container would have."""
        mounts: dict[str, Path] = {}
        for mount in self.services[name].get("volumes", []):
            source, inside, *_ = mount.split(":")
            mounts[inside] = ROOT / source if source.startswith(".") else self.volume(source)
        if name == "prometheus":
            mounts["/etc/prometheus/prometheus.yml"] = self.folder / "prometheus" / "prometheus.yml"
        inside = "|".join(re.escape(place) for place in sorted(mounts, key=len, reverse=True))
        if inside:
            text = re.sub(rf"(?<![\w/])({inside})(?=/|$)", lambda found: str(mounts[found[1]]), text)
        for place, port in self.ports.items():
            text = text.replace(place, f"127.0.0.1:{port}")
        own = self.ports.get(f"{name}:9464", 9464)
        return text.replace("127.0.0.1:9464", f"127.0.0.1:{own}")

    def _kafka_properties(self, service: Mapping[str, Any]) -> dict[str, str]:
        """As the image makes them; places are ours, and so is the quorum's address, which the embedded broker sets."""
        port = self.ports["kafka:9092"]
        controller, external = free_port(), free_port()
        given = {
            key.removeprefix("KAFKA_").lower().replace("_", "."): str(value)
            for key, value in service["environment"].items()
            if key.startswith("KAFKA_") and key not in ("KAFKA_HEAP_OPTS", "KAFKA_CONTROLLER_QUORUM_VOTERS")
        }
        names = {"9092": port, "9093": controller, "9094": external}
        for key in ("listeners", "advertised.listeners"):
            given[key] = re.sub(r"//[\w.]*:(\d+)", lambda found: f"//127.0.0.1:{names[found[1]]}", given[key])
        voter = service["environment"]["KAFKA_CONTROLLER_QUORUM_VOTERS"]
        assert voter == f"{given['node.id']}@kafka:9093", "the controller must be where its listener is"
        given["controller.quorum.bootstrap.servers"] = f"127.0.0.1:{controller}"
        given["log.dirs"] = str(self.volume("kafka-data"))
        return given

    def _write_prometheus_config(self) -> None:
        """The scrape configuration with places of this machine, and seconds for tens of seconds."""
        folder = self.folder / "prometheus"
        folder.mkdir(exist_ok=True)
        config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in config["scrape_configs"]:
            (found,) = job.pop("dns_sd_configs")
            (name,) = found["names"]
            port = self.ports.get(f"{name}:{found['port']}")
            job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"] if port is not None else []}]
        config["rule_files"] = [str(ROOT / "deploy/prometheus" / pattern) for pattern in config["rule_files"]]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    # -- conditions --------------------------------------------------------------------------------------------------

    def _wait_for(self, name: str, condition: str) -> None:
        if name not in self.started:
            assert name not in self.services, f"{name} is depended on and was not started"
            return
        if condition == "service_completed_successfully":
            code = self.processes[name].wait(DEADLINE_S)
            assert code == 0, f"{name} ended with {code}\n{self.log(name)}"
        else:
            assert condition == "service_healthy", condition
            self.wait_healthy(name)

    def _is_healthy(self, name: str, test: list[str]) -> bool:
        program, *words = test
        if program == "nc":
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.ports[f"{name}:{words[-1]}"]), 1):
                return True
            return False
        if program == "wget":
            url = words[-1].replace("127.0.0.1:9090", self.address("prometheus:9090"))
            with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
            return False
        if program == "redis-cli":
            command = [str(redis(program)), "-p", str(self.ports["redis:6379"]), *words]
        else:
            assert program == "python", shlex.join(test)
            command = [sys.executable, *(self._here(name, word) for word in words)]
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0

    def _until(self, condition: Callable[[], bool], name: str, complaint: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        process = self.processes.get(name)
        while not condition():
            ended = process is not None and process.poll() is not None
            assert not ended, f"{name} ended by itself\n{self.log(name)}"
            assert time.monotonic() < deadline, f"{complaint}\n{self.log(name)[-3000:]}"
            if process is not None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
