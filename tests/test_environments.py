"""The lock file and the conda environments agree, and name no address."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from environments import GROUPS, ROOT, environment, locked
from packaging.requirements import Requirement


@pytest.mark.parametrize("group", GROUPS)
def test_conda_environments_are_those_of_the_lock_file(group: str) -> None:
    text = (ROOT / "envs" / f"{group}.yaml").read_text(encoding="utf-8")
    assert text == environment(group), "run `make lock`"
    pinned = yaml.safe_load(text)["dependencies"][-1]["pip"]
    assert all(locked()[name] == version for name, version in (entry.split("==") for entry in pinned))


def test_the_lock_file_satisfies_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [entry for group in project["optional-dependencies"].values() for entry in group]
    versions = locked()
    for entry in project["dependencies"] + extras:
        requirement = Requirement(entry)
        assert requirement.specifier.contains(versions[requirement.name.lower()]), entry


def test_the_lock_file_has_hashes_and_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert text.count("--hash=sha256:") > len(re.findall("==", text))
