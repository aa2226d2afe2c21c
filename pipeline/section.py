"""What the sections of the settings share: they are frozen, know their keys, and take lists from the environment."""

from __future__ import annotations

import json
import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def listed(value: object) -> object:
    """A list from an environment variable: a JSON array or names separated by commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def _topic(name: object) -> object:
    if not isinstance(name, str):
        return name
    if not _TOPIC.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{name!r} is no Kafka topic name (letters, digits, '.', '_', '-'; at most 249)")
    return name


def table_of(value: object) -> object:
    """A table from an environment variable: a JSON object."""
    return json.loads(value) if isinstance(value, str) else value


def none_for(word: str) -> BeforeValidator:
    """Reads a word as ``None``, which TOML cannot write: "off", "forever"."""
    return BeforeValidator(lambda given: None if given == word else given)


Names = Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)]
Topic = Annotated[str, BeforeValidator(_topic)]
TopicNames = Annotated[tuple[Topic, ...], BeforeValidator(listed), Field(min_length=1)]


class Section(BaseModel):
    """A table of the settings file."""

    # A validation error is the cause of a ConfigurationError, and its text is in the traceback that --debug shows.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
