"""README and docs: links lead somewhere, YAML examples load, commands and their options exist, every command is described."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from wsss_core.cli import app
from wsss_core.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks, without the indent of a list."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)) for indent, language, text in found]


def code_of(page: Path) -> list[str]:
    """All code: lines of fenced blocks, without comments, and what stands between backticks."""
    lines = [line.split(" #")[0] for _, text in blocks(page) for line in text.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made on the usual code hosts."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(place), f"{page.name}: {target}"


@every_page
def test_yaml_examples_load(page: Path) -> None:
    for language, text in blocks(page):
        if language == "yaml":
            values = yaml.safe_load(text)
            if "experiments" in values:
                load_config(values, page.name)


@every_page
def test_commands_and_options_exist(page: Path) -> None:
    for code in code_of(page):
        for name, rest in re.findall(r"\bwsss +([a-z][a-z-]*)\b([^|;&]*)", code):
            assert name in COMMANDS, f"{page.name}: {code}"
            known = {option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
            unknown = set(re.findall(r"(?<=\s)--?[a-z][\w-]*", rest)) - known - {"--help"}
            assert not unknown, f"{page.name}: {code}"


def test_every_command_and_option_is_described() -> None:
    sections = re.split(r"^## `wsss ([\w-]+)`$", (ROOT / "docs/commands.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    described = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert set(described) == set(COMMANDS)
    for name, text in described.items():
        options = {parameter.opts[0] for parameter in COMMANDS[name].params if parameter.param_type_name == "option"}
        missing = [o for o in options - {"--help", "--threads", "--gpus"} if o not in text]
        assert not missing, f"{name}: {missing}"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == project["version"]
    assert citation["license"] == project["license"]


def test_no_page_has_a_gap_left_to_fill() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    assert not [page.name for page in pages if "<!--" in page.read_text(encoding="utf-8")]
