"""What comments and pages refer to is there to be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(path for name in ("pipeline", "models", "deploy", "tests") for path in (ROOT / name).rglob("*.py"))
PAGES = sorted((ROOT / "docs").glob("*.md"))
RULES = re.compile(r"\b[Rr]ules? (\d+)((?:(?:, | and | to )\d+)*)")


def rules_cited(text: str) -> set[int]:
    """Numbers in ``rule 4``, ``rules 18, 19``, ``rules 10 to 12``."""
    return {int(number) for cited in RULES.finditer(text) for number in re.findall(r"\d+", cited[0])}


def test_every_rule_that_is_cited_stands_in_the_protocol() -> None:
    """A number that nobody can look up explains nothing."""
    stated = {int(n) for n in re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "protocol.md").read_text(), re.MULTILINE)}
    assert stated == set(range(1, 24))
    cited = {path: rules_cited(path.read_text()) for path in CODE}
    assert cited[ROOT / "pipeline" / "state" / "redis.py"] >= {18, 21}, "citations are found at all"
    assert not {str(path): rules - stated for path, rules in cited.items() if rules - stated}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    """A promise is held by a test as long as there is one."""
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))
    defined = {name for path in CODE for name in re.findall(r"def (test_\w+)", path.read_text())}
    assert named <= defined, named - defined


def test_every_page_that_code_names_exists() -> None:
    """Comments cite pages by their names."""
    there = {path.name for path in PAGES} | {"README.md", "CHANGELOG.md"}
    code = [path for path in CODE if not path.is_relative_to(ROOT / "tests")]  # those write pages of their own
    named = {(path.name, page) for path in code for page in re.findall(r"\b([\w-]+\.md)\b", path.read_text())}
    assert not {each for each in named if each[1] not in there}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    """A page that was moved takes its links along."""
    targets = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert all((page.parent / target).exists() for target in targets), targets
