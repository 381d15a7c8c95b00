"""The command `wsss` with two processes on the CPU where it would take the GPUs: `python tests/two_devices.py train SPEC`.

The second process is started by running this file again, as `wsss train` is on a machine with two GPUs.
"""

from __future__ import annotations

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment

from wsss_core.__main__ import main
from wsss_core.config import Training
from wsss_core.engine import loop


def on_the_cpu(config: Training, gpus: int) -> Fabric:
    """Return what `make_fabric` does with two GPUs, without them."""
    return Fabric(accelerator="cpu", devices=2, strategy=loop.SEVERAL_DEVICES, plugins=[LightningEnvironment()])


if __name__ == "__main__":
    loop.make_fabric = on_the_cpu
    main()
