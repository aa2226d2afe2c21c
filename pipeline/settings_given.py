"""What settings are given: TOML file, shipped profiles, environment, files that hold secrets.

As nested mappings of sections and keys, not yet looked at; :meth:`pipeline.settings.Settings.load` puts one over the
other and says what is wrong with the result.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigurationError

PREFIX = "TIDEWATCH_"
OWN_VARIABLES = {f"{PREFIX}CONFIG", f"{PREFIX}CACHE", f"{PREFIX}IMAGE"}
"""Variables that set no setting: the settings' own file, where fetched jars are kept (pipeline/jars.py), and the image
that docker-compose.yml runs."""
# NAME=VALUE as Kubernetes sets them in every pod for a Service named tidewatch or tidewatch-...:
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
# Without its value <SERVICE>_PORT would also be a setting written with one underscore too few, TIDEWATCH_HTTP_PORT.
_OF_A_KUBERNETES_SERVICE = re.compile(
    rf"{PREFIX[:-1]}(_[A-Z0-9]+)*_"
    r"(SERVICE_HOST=|SERVICE_PORT(_[A-Z0-9]+)*=|PORT=(tcp|udp|sctp)://|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=)"
)
PLAIN_VARIABLES = {"KAFKA_BOOTSTRAP_SERVERS": ("kafka", "bootstrap_servers"), "REDIS_URL": ("redis", "url")}
# Each may be given as <key>_file as well: the path of a file that holds it.
SECRETS = (
    ("kafka", "security", "password"),
    ("kafka", "security", "key_password"),
    ("redis", "url"),
    ("redis", "password"),
    ("notify", "url"),
    ("notify", "token"),
)
SHIPPED_PROFILES = ("sensor", "network")


def heard_variables() -> tuple[str, ...]:
    """Names of the environment variables that are set and that :meth:`pipeline.settings.Settings.load` would follow.

    For a child process that must follow its settings file alone.
    """
    return tuple(name for name in os.environ if name.upper().startswith(PREFIX) or name in PLAIN_VARIABLES)


def named_file() -> Path | None:
    """The TOML file that ``TIDEWATCH_CONFIG`` names."""
    named = os.environ.get(f"{PREFIX}CONFIG")
    return Path(named) if named else None


def shipped_profile(name: str) -> dict[str, Any]:
    """What the package says of one of its own profiles."""
    text = (resources.files("pipeline") / "profiles" / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def read_toml(path: Path) -> dict[str, Any]:
    """What a file says. Raises ConfigurationError where it cannot be read, or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be read ({exc.strerror})") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path}: not TOML: {exc}") from exc


def with_shipped_profiles(raw: dict[str, Any]) -> dict[str, Any]:
    """The file's settings with the shipped profiles filled in below its own."""
    given = raw.get("profiles")
    if given is None:
        return {**raw, "profiles": {name: shipped_profile(name) for name in SHIPPED_PROFILES}}
    if not isinstance(given, dict):
        return raw
    filled = dict(given)
    for name in SHIPPED_PROFILES:
        if isinstance(given.get(name), dict):
            filled[name] = {**shipped_profile(name), **given[name]}
    return {**raw, "profiles": filled}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, tables key by key, everything else as a whole."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def with_secret_files(given: dict[str, Any]) -> dict[str, Any]:
    """What ``<key>_file`` names in the place of ``<key>``: how containers are handed their secrets.

    Raises ConfigurationError where both are given, or the file cannot be read.
    """
    raw = deepcopy(given)
    for *sections, key in SECRETS:
        table: Any = raw
        for section in sections:
            table = table.get(section) if isinstance(table, Mapping) else None
        path = table.pop(f"{key}_file", None) if isinstance(table, dict) else None
        if path is None:
            continue
        place = ".".join((*sections, key))
        if key in table:
            raise ConfigurationError(f"{place}: given itself, and by {place}_file as well; leave one out")
        try:
            table[key] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError, TypeError) as exc:
            raise ConfigurationError(f"{place}_file: {path} cannot be read ({type(exc).__name__})") from exc
    return raw


def plain_environment() -> dict[str, Any]:
    """What variables without the prefix say (:data:`PLAIN_VARIABLES`)."""
    return {
        section: {key: os.environ[variable]}
        for variable, (section, key) in PLAIN_VARIABLES.items()
        if os.environ.get(variable)
    }


def variable_of(place: Sequence[str | int], environment: Mapping[str, Any]) -> str | None:
    """The environment variable that sets what lies at ``place``; ``None`` where the environment does not say it."""
    keys: list[str] = []
    given: Any = environment
    for key in place:
        if not isinstance(given, Mapping) or key not in given:
            break
        keys, given = [*keys, str(key)], given[key]
    if not keys or isinstance(given, Mapping):
        return None
    plain = next((name for name, path in PLAIN_VARIABLES.items() if list(path) == keys and os.environ.get(name)), None)
    own = PREFIX + "__".join(keys).upper()
    return plain if plain is not None and own not in os.environ else own


def refuse_unknown_variables(sections: set[str]) -> None:
    """Raise ConfigurationError where a variable with the prefix names none of these sections."""
    unknown = sorted(
        name
        for name, value in os.environ.items()
        if name.upper().startswith(PREFIX)
        and name.upper() not in OWN_VARIABLES
        and not _OF_A_KUBERNETES_SERVICE.match(f"{name}={value}")
        and name[len(PREFIX) :].lower().split("__")[0] not in sections
    )
    if unknown:
        raise ConfigurationError(
            f"environment: {', '.join(unknown)} set no setting; write {PREFIX}<SECTION>__<KEY>, "
            f"with a section of {', '.join(sorted(sections))}"
        )
