"""Where a network starts that takes over the backbone of the trained classifier."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from wsss_core.errors import UserError


def start_from_classifier(model: nn.Module, inputs: dict[str, Path], backbone: str) -> None:
    """Load the backbone of the trained classifier, if the stage builds on one: what `initial: classifier` says.

    Parameters
    ----------
    model
        Its backbone is the module `features`; nothing else changes.
    inputs
        Directories of the upstream stages by role; without `classifier` the model stays as it is.
    backbone
        The model's, for the error.

    Raises
    ------
    UserError
        If the classifier cannot be read, or has another backbone.
    """
    if "classifier" not in inputs:
        return
    path = inputs["classifier"] / "model.safetensors"
    try:
        state = {name: value for name, value in load_file(path).items() if name.startswith("features.")}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be loaded ({str(error).splitlines()[0]})") from None
    own = {name: value.shape for name, value in model.state_dict().items() if name.startswith("features.")}
    if {name: value.shape for name, value in state.items()} != own:
        raise UserError(f"{path}: its backbone is not {backbone}; use `initial: weights`")
    model.load_state_dict(state, strict=False)
