"""What the rules promise: resources, logs, benchmarks; the workflow catalogue finds its way in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = {
    match[1]: match[0]
    for path in sorted((ROOT / "workflow/rules").glob("*.smk"))
    for match in re.finditer(r"^rule (\w+):\n(?:(?:    .*)?\n)+", path.read_text(encoding="utf-8"), re.MULTILINE)
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_log_an_environment_and_a_command(name: str) -> None:
    for part in ("log:", "conda:", "shell:", "{WSSS} "):
        assert part in RULES[name]


@pytest.mark.parametrize("name", [name for name, text in RULES.items() if "--gpus" in text])
def test_rules_with_a_network_declare_their_gpu(name: str) -> None:
    assert re.search(r"resources:\n        gpu=", RULES[name])
    assert "mem_mb=" in RULES[name]
    assert "runtime=" in RULES[name]
    assert "benchmark:" in RULES[name]


def test_the_catalogue_finds_the_workflow() -> None:
    assert 'include: "../Snakefile"' in (ROOT / "workflow/Snakefile").read_text(encoding="utf-8")
