"""Writes envs/*.yaml from the lock file: `python tests/environments.py --write`; `make lock` calls it, a test checks it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).parents[1]
PYTHON = "3.11"
CPU = (
    "h5py", "matplotlib", "numpy", "pandas", "pillow", "pycocotools", "pydantic", "pydensecrf2", "pyyaml", "rich", "scikit-image",
    "scikit-learn", "scipy", "typer",
)  # fmt: skip
GPU = (*CPU, "lightning-fabric", "safetensors", "segmentation-models-pytorch", "timm", "torch", "torchvision")
GROUPS = {"cpu": (CPU, "rules without a network"), "gpu": (GPU, "rules that run a network; the same torch works without a GPU")}


def locked() -> dict[str, str]:
    """Versions of the lock file for Python 3.11 on Linux."""
    versions = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z0-9_.-]+)==(\S+)(?: ; (.*?))? *\\?$", line)
        environment = {"python_full_version": f"{PYTHON}.0", "sys_platform": "linux", "platform_machine": "x86_64"}
        if match and (not match[3] or Marker(match[3]).evaluate(environment)):
            versions[match[1]] = match[2]
    return versions


def environment(group: str) -> str:
    """The text of envs/<group>.yaml."""
    packages, purpose = GROUPS[group]
    versions = locked()
    lines = [
        f"# For `--sdm conda`: {purpose}. Generated from requirements.lock by `make lock`.",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        f"  - python={PYTHON}",
        "  - pip",
        "  - c-compiler",
        "  - cxx-compiler",
        "  - pip:",
        *(f"      - {name}=={versions[name]}" for name in packages),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    for name in GROUPS:
        (ROOT / "envs" / f"{name}.yaml").write_text(environment(name), encoding="utf-8")
