"""The `data` stage: the index of a data set, with all that has to be converted or made."""

from __future__ import annotations

from wsss_core.data.index import INDEX_FILE, DataIndex, write_index
from wsss_core.data.sources import build_index, dataset_from_spec, summary
from wsss_core.errors import UserError
from wsss_core.files import write_json
from wsss_core.stage import SPEC, Stage


def prepare(stage: Stage) -> None:
    """Do the work of the `data` stage: convert what needs it and write `index.json`, the last of its outputs."""
    where = str(stage.output / SPEC)
    if not isinstance(stage.parameters.get("dataset"), dict):
        raise UserError(f"{where}: parameters.dataset: expected the dataset block")
    dataset = dataset_from_spec(stage.parameters["dataset"], stage.spec.files, where)
    index = build_index(dataset, stage.output, stage.track)
    _check_splits(index)
    write_json(stage.output / INDEX_FILE, write_index(index))
    stage.facts["label_source"] = index.label_source
    stage.log(summary(index))


def _check_splits(index: DataIndex) -> None:
    """Refuse what would make every later figure worthless: nothing to train or judge on, or judging on training images."""
    train = {record.id for record in index.split("train")}
    for name in index.splits:
        shared = sorted(train & {record.id for record in index.split(name)}) if name != "train" else []
        if shared:
            raise UserError(
                f"dataset: the image '{shared[0]}' is in both train and {name} ({len(shared)} such images); splits must not overlap"
            )
    index.split("val")
