"""What each alert rule means, for people: ``python deploy/prometheus/describe.py`` writes docs/self-alerts.md.

Change the rules, never the page; a test compares the two.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parent / "rules"
PAGE = Path(__file__).parents[2] / "docs" / "self-alerts.md"
HEAD = """\
# What each alert about Tidewatch itself means

Made from `deploy/prometheus/rules` by `python deploy/prometheus/describe.py`; do not edit by hand. These are not the
anomalies that Tidewatch finds, but what Prometheus says of its own health. *critical*: somebody should look now;
*warning*: today. None of them means that a score or an alert was lost, unless it says so.
"""


def page() -> str:
    """The page."""
    groups = [group for path in sorted(RULES.glob("*.yml"), key=_order) for group in _loaded(path)]
    return HEAD + "".join(f"\n## {_title(group)}\n" + "".join(map(_entry, group["rules"])) for group in groups)


def _order(path: Path) -> tuple[bool, str]:
    """The worker's first, as it is what matters most."""
    return path.stem != "worker", path.stem


def _loaded(path: Path) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return groups


def _title(group: dict[str, Any]) -> str:
    return str(group["name"]).removeprefix("tidewatch-").capitalize()


def _entry(rule: dict[str, Any]) -> str:
    says = rule["annotations"]
    lasting = f", after {rule['for']}" if "for" in rule else ""
    head = f"**{rule['alert']}** ({rule['labels']['severity']}{lasting}): {_without_values(says['summary'])}."
    return "\n" + "".join(f"{_filled(line)}\n" for line in (f"{head} {says['description']}", f"*Do:* {says['action']}"))


def _without_values(summary: str) -> str:
    """What Prometheus fills in, as a name: N for the value, the label's name for a label."""
    named = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: found[1].upper(), summary)
    return re.sub(r"\{\{ \$value\b.*?\}\}", "N", named)


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
