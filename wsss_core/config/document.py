"""What is generated from the models: the JSON schema and docs/configuration.md. `make docs` writes both; a test keeps them current."""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from wsss_core.config import classifiers, datasets, pipeline, refinement
from wsss_core.config.load import SHARED
from wsss_core.config.root import Config, Report, Run, Table

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_FILE = ROOT / "workflow" / "schemas" / "config.schema.json"
DOCS_FILE = ROOT / "docs" / "configuration.md"

_SECTIONS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("Top level", "", Config),
    ("dataset: made images", "dataset", datasets.Shapes),
    ("dataset: own images", "dataset", datasets.Folder),
    ("dataset: PASCAL VOC 2012", "dataset", datasets.Voc12),
    ("dataset: MS COCO 2014", "dataset", datasets.Coco14),
    ("experiments.<name>", "", pipeline.Experiment),
    ("classifier: system cam", "classifier", classifiers.CamClassifier),
    ("classifier: system puzzle", "classifier", classifiers.PuzzleClassifier),
    ("classifier: system rsa_cfc", "classifier", classifiers.RsaCfcClassifier),
    ("classifier: system isim", "classifier", classifiers.IsimClassifier),
    ("classifier.labels: pseudo labels of system isim", "classifier", classifiers.OwnLabels),
    ("classifier: system mcl", "classifier", classifiers.MclClassifier),
    ("classifier: system apc", "classifier", classifiers.ApcClassifier),
    ("cams", "cams", pipeline.Cams),
    ("refine", "refine", refinement.Refine),
    ("refine.labels", "refine.labels", refinement.AffinityLabels),
    ("refine.affinity: AffinityNet", "refine.affinity", refinement.Affinity),
    ("refine.boundary: boundary network", "refine.boundary", refinement.Boundary),
    ("refine.walk", "refine.walk", refinement.Walk),
    ("pseudo", "pseudo", pipeline.Pseudo),
    ("segmenter", "segmenter", pipeline.Segmenter),
    ("predict", "predict", pipeline.Predict),
    ("evaluate", "evaluate", pipeline.Evaluate),
    ("tables.<name>", "", Table),
    ("report", "report", Report),
    ("run", "run", Run),
)

_INTRODUCTION = """# Configuration

Generated from `wsss_core/config` by `make docs`; do not edit.

A configuration is a YAML file. Only what differs from a default has to be written. The blocks of an experiment (`classifier`, `cams`,
`refine`, `pseudo`, `segmenter`, `predict`, `evaluate`, `seeds`, `supervision`) may also stand at the top level: there they are shared by all
experiments, and an experiment's own values win. `sweep` lists values of configuration keys; each experiment is repeated for every combination,
and its name tells which:

```yaml
dataset: {source: folder, root: photos}
classifier: {backbone: resnet50}
experiments:
  crf: {}
  no-crf: {refine: {method: none}}
sweep: {classifier.lr: [0.01, 0.1], pseudo.threshold: [0.2, 0.3]}
```

`snakemake --configfile a.yaml b.yaml` lays `b.yaml` over `a.yaml`. (Nested values given by `--config` arrive as text; use a file.)

A figure in a table is named `<subject>.<split>[.<rule>].<metric>`: subject `classifier`, `cams`, `walk`, `refine`, `pseudo` or
`segmenter`, of system `apc` also `end_to_end`, `end_to_end-labels`, `end_to_end-patches` and `patches`; metric `map`, `accuracy` (classifier), `miou`, `mfdr`, `mfnr` or `iou.<class>`,
with `evaluate.boundary_tolerance` also `boundary_f` and `boundary_agnostic_f`, of `patches` `inter_class` and `intra_class`; rule `oracle`
for the threshold that is best on the true masks, otherwise that of the configuration (`auto`, `fixed`, or `argmax` with a background channel).
Examples: `cams.train.oracle.miou`, `segmenter.val.miou`, `segmenter.val.iou.cow`. What a stage took is `cost.<stage>.seconds` and `cost.<stage>.memory_gb`.
"""


def schema() -> str:
    """Return the JSON schema of a configuration file, shared blocks and sweeps included."""
    made = Config.model_json_schema()
    experiment = made["$defs"]["Experiment"]["properties"]
    for key in SHARED:
        made["properties"][key] = experiment[key]
    made["properties"]["sweep"] = {
        "description": "Configuration keys and their values: every experiment is repeated for each combination.",
        "type": "object",
        "additionalProperties": {"type": "array", "minItems": 1},
    }
    made["$defs"]["Experiment"]["properties"]["sweep"] = made["properties"]["sweep"]
    return json.dumps(made, indent=1) + "\n"


def document() -> str:
    """Return docs/configuration.md."""
    parts = [_INTRODUCTION]
    for title, _, model in _SECTIONS:
        parts.append(f"## {title}\n")
        parts.append("| key | default | values | meaning |\n| --- | --- | --- | --- |")
        for name, field in model.model_fields.items():
            meaning = (field.description or "").replace("|", "\\|").replace("\n", " ")
            parts.append(f"| `{name}` | {_default(field)} | {_values(field)} | {meaning} |")
        parts.append("")
    return "\n".join(parts)


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple):
        value = list(value)
    if value is None:
        return "unset"
    if value == "":
        return "unset"
    return f"`{json.dumps(value) if isinstance(value, (bool, list, dict)) else value}`"


def _values(field: FieldInfo) -> str:
    text = _type_name(field.annotation)
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in _LIMITS.items() if getattr(m, name, None) is not None]
    return f"{text} {', '.join(limits)}".strip().replace("|", "\\|")


_LIMITS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *metadata = typing.get_args(annotation)
        field = FieldInfo(annotation=inner)
        field.metadata = [m for extra in metadata for m in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return _values(field).replace("\\|", "|")
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(v) if isinstance(v, bool) else v}`" for v in typing.get_args(annotation))
    if origin in (types.UnionType, typing.Union):
        parts = [_type_name(a) for a in typing.get_args(annotation) if a is not type(None)]
        return " or ".join(dict.fromkeys(parts))
    if origin is tuple:
        arguments = typing.get_args(annotation)
        inner = _type_name(arguments[0])
        return f"list of {inner}" if arguments[-1] is Ellipsis else f"{len(arguments)} x {inner}"
    if origin is dict:
        return "by name"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "block"
    return {"int": "whole number", "float": "number", "str": "text", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )


def main() -> None:
    """Write both files."""
    SCHEMA_FILE.parent.mkdir(parents=True, exist_ok=True)
    SCHEMA_FILE.write_text(schema(), encoding="utf-8")
    DOCS_FILE.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
