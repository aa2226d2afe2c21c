"""The alert rules: valid, and each shown firing and not firing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.programs import prometheus

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
TESTS = sorted((ROOT / "tests" / "deploy" / "rules").glob("*.yml"))


def rules() -> list[dict[str, object]]:
    """Every alert rule."""
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def promtool(*words: object) -> str:
    """Run it; returns what it said where it found nothing wrong."""
    done = subprocess.run([prometheus("promtool"), *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_and_rules_are_valid() -> None:
    """Prometheus with a broken rule file does not start at all."""
    promtool("check", "config", ROOT / "deploy" / "prometheus" / "prometheus.yml")
    promtool("check", "rules", *RULES)


@pytest.mark.parametrize("path", TESTS, ids=[path.stem for path in TESTS])
def test_rules_fire_when_they_should_and_not_otherwise(path: Path) -> None:
    """An alert that never fires is worse than none, and one that fires for nothing is switched off."""
    promtool("test", "rules", path)


def test_every_rule_is_shown_firing_and_not_firing() -> None:
    """A rule without a test is a guess."""
    shown: dict[str, set[float]] = {}
    for path in TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            alert = case["name"].partition(":")[0]
            for check in case["promql_expr_test"]:
                assert f'alertname="{alert}"' in check["expr"]
                shown.setdefault(alert, set()).update(sample["value"] for sample in check["exp_samples"])
    assert shown == {str(rule["alert"]): {0, 1} for rule in rules()}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_every_rule_says_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    """Whoever is woken by it has not read the source."""
    assert set(rule["annotations"]) == {"summary", "description", "action"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert all(len(text) >= 20 for text in rule["annotations"].values())
