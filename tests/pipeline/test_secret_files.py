"""Secrets handed over by files, as containers are."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.settings import Settings


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file with a secret, and the newline that editors add."""
    path = tmp_path / "secret"
    path.write_text("s3cret\n")
    return path


def test_a_secret_comes_from_a_file_named_by_the_environment(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker and Kubernetes mount secrets; the environment is seen by `docker inspect`."""
    monkeypatch.setenv("TIDEWATCH_REDIS__PASSWORD_FILE", str(secret))
    monkeypatch.setenv("TIDEWATCH_NOTIFY__TOKEN_FILE", str(secret))
    settings = Settings.load()
    assert settings.redis.password is not None
    assert settings.redis.password.get_secret_value() == "s3cret"
    assert settings.redis.address().get_secret_value() == "redis://localhost:6379/0?password=s3cret"
    assert settings.notify.token is not None
    assert "s3cret" not in repr(settings)


def test_a_secret_comes_from_a_file_named_in_the_settings_file(secret: Path, tmp_path: Path) -> None:
    """The settings file can then be read by anyone."""
    path = tmp_path / "worker.toml"
    path.write_text(
        f'[kafka.security]\nprotocol = "SASL_SSL"\nmechanism = "PLAIN"\nusername = "u"\npassword_file = "{secret}"\n'
    )
    password = Settings.load(path).kafka.security.password
    assert password is not None
    assert password.get_secret_value() == "s3cret"


def test_loading_leaves_what_it_is_given_alone(secret: Path) -> None:
    """Whoever passes overrides may pass them again."""
    given = {"redis": {"password_file": str(secret)}}
    Settings.load(overrides=given)
    Settings.load(overrides=given)
    assert given == {"redis": {"password_file": str(secret)}}


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"password_file": "/nowhere"}, r"redis\.password_file: /nowhere cannot be read"),
        ({"password_file": "/nowhere", "password": "s3cret"}, r"redis\.password: given itself, and by"),
        ({"ca_file": "ca.pem"}, r"rediss://"),
        ({"url": "rediss://h:1/0", "cert_file": "c.pem"}, r"cert_file and key_file go together"),
    ],
)
def test_what_cannot_be_meant_is_refused(section: dict[str, str], complaint: str) -> None:
    """A password that is silently not used is found out in production."""
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        Settings.load(overrides={"redis": section})
    assert "s3cret" not in str(refused.value)
