"""A fingerprint of the code behind each stage, so that a change of it cannot forget the stage's revision.

`python tests/fingerprints.py --write` refreshes tests/fingerprints.json after a change that alters no result (or after raising a
revision). Comments, docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from wsss_core.revisions import REVISIONS

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).with_suffix(".json")
MODULES = {
    "data": ("wsss_core.stages.data",),
    "classifier.cam": ("wsss_core.stages.train", "wsss_core.systems.cam"),
    "classifier.puzzle": ("wsss_core.stages.train", "wsss_core.systems.puzzle"),
    "classifier.rsa_cfc": ("wsss_core.stages.train", "wsss_core.systems.rsa_cfc"),
    "classifier.isim": ("wsss_core.stages.train", "wsss_core.systems.isim", "wsss_core.engine.rounds"),
    "classifier.mcl": ("wsss_core.stages.train", "wsss_core.systems.mcl"),
    "classifier.apc": ("wsss_core.stages.train", "wsss_core.systems.apc"),
    "cams": ("wsss_core.stages.cams", *(f"wsss_core.systems.{name}" for name in ("cam", "puzzle", "rsa_cfc", "isim", "mcl", "apc"))),
    "threshold": ("wsss_core.stages.threshold",),
    "affinity-labels": ("wsss_core.stages.affinity_labels",),
    "affinity.affinity": ("wsss_core.stages.train", "wsss_core.systems.affinity"),
    "boundary.boundary": ("wsss_core.stages.train", "wsss_core.systems.boundary"),
    "walk": ("wsss_core.stages.walk", "wsss_core.systems.affinity", "wsss_core.systems.boundary"),
    "crf": ("wsss_core.stages.crf",),
    "pseudo": ("wsss_core.stages.pseudo",),
    "segmenter.segment": ("wsss_core.stages.train", "wsss_core.systems.segment"),
    "predict": ("wsss_core.stages.predict", "wsss_core.systems.segment", "wsss_core.systems.apc"),
    "evaluate": ("wsss_core.stages.evaluate",),
}
# What these hold changes no result (bookkeeping), is in the ids already (values of the configuration), or serves only the stages that name it
# (rounds of pseudo labels).
APART = (
    "wsss_core.config",
    "wsss_core.errors",
    "wsss_core.files",
    "wsss_core.stage",
    "wsss_core.devices",
    "wsss_core.systems",
    "wsss_core.engine.rounds",
)


def fingerprint(stage: str, root: Path = ROOT) -> str:
    """Hash the syntax trees of the stage's modules and of all package modules that they import."""
    found: set[str] = set()
    todo = list(MODULES[stage])
    while todo:
        module = todo.pop()
        if module in found or (_is_apart(module) and module not in MODULES[stage]):
            continue
        found.add(module)
        todo += _imports(_tree(module, root), root)
    content = json.dumps([[module, _shape(_tree(module, root))] for module in sorted(found)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _is_apart(module: str) -> bool:
    return any(module == apart or (module.startswith(apart + ".") and apart != "wsss_core.systems") for apart in APART)


def _path(module: str, root: Path) -> Path | None:
    base = root / module.replace(".", "/")
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def _tree(module: str, root: Path) -> ast.Module:
    path = _path(module, root)
    assert path is not None, module
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]  # type: ignore[attr-defined]
    return tree


def _imports(tree: ast.Module, root: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wsss_core"):
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("wsss_core")]
    return [name for name in names if _path(name, root)]


def _shape(node: Any) -> Any:
    """A tree as lists, alike on all Python versions: empty fields are left out, which newer versions add."""
    if isinstance(node, ast.AST):
        fields = {name: _shape(value) for name, value in ast.iter_fields(node) if value not in (None, []) and name != "type_comment"}
        return [type(node).__name__, fields]
    if isinstance(node, list):
        return [_shape(each) for each in node]
    return repr(node)


def current() -> dict[str, dict[str, Any]]:
    """Revision and fingerprint of every stage."""
    return {stage: {"revision": REVISIONS[stage], "fingerprint": fingerprint(stage)} for stage in MODULES}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    FILE.write_text(json.dumps(current(), indent=1) + "\n", encoding="utf-8")
