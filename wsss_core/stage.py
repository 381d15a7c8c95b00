"""What every command does around its work: read the spec, lock, log, show progress, write whole outputs and a manifest.

A stage's directory `results/<data set>/store/<stage>/<id>/` holds `spec.json` (what to do), the outputs, `log.txt`,
`manifest.json` (what was done; its presence means the stage is complete) and, while it runs, `resume/`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from wsss_core.errors import UserError
from wsss_core.files import atomic_path, read_json, sha256, write_json

SPEC, MANIFEST, LOG, RESUME = "spec.json", "manifest.json", "log.txt", "resume"
_RECORDED_PACKAGES = ("torch", "torchvision", "timm", "pydensecrf2", "numpy", "scikit-image", "h5py", "snakemake")
_NOT_OUTPUTS = (SPEC, MANIFEST, LOG, RESUME, ".lock", "benchmark.tsv")
_SECONDS_BETWEEN_LINES = 30.0
Item = TypeVar("Item")


@dataclass(frozen=True)
class Spec:
    """What a command is to do: the parsed `spec.json`.

    Attributes
    ----------
    stage, id, revision, parameters, seed, upstream
        What the id is made of; `upstream` holds the ids of the stages it builds on, by role.
    inputs
        Directories of these stages, by role.
    files
        Places outside the project (the data set's `root`, `weights`): where, while the id knows their content.
    run
        Settings that change no result (workers, tensorboard).
    output
        The stage's own directory.
    """

    stage: str
    id: str
    revision: int
    parameters: dict[str, Any]
    seed: int | None
    upstream: dict[str, str]
    inputs: dict[str, Path]
    files: dict[str, str]
    run: dict[str, Any]
    output: Path


def read_spec(path: Path) -> Spec:
    """Read and check a spec file; raises `UserError` if it is missing, damaged or lacks a key."""
    values = read_json(path)
    fields = Spec.__dataclass_fields__
    if not isinstance(values, dict) or set(fields) - set(values):
        missing = sorted(set(fields) - set(values)) if isinstance(values, dict) else sorted(fields)
        raise UserError(f"{path}: not a stage's spec: missing {', '.join(missing)}")
    values = {key: values[key] for key in fields}
    for key in ("parameters", "upstream", "inputs", "files", "run"):
        if not isinstance(values[key], dict):
            raise UserError(f"{path}: {key}: expected a mapping, got {values[key]!r}")
    inputs = {role: Path(directory) for role, directory in values["inputs"].items()}
    return Spec(**{**values, "inputs": inputs, "output": Path(values["output"])})


@dataclass
class Stage:
    """A running stage, handed to the function that does the work."""

    spec: Spec
    threads: int
    gpus: int
    device: str = "cpu"
    facts: dict[str, Any] = field(default_factory=dict)
    """More for the manifest, such as the resolved precision."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The spec's parameters."""
        return self.spec.parameters

    @property
    def workers(self) -> int:
        """Processes that load images."""
        return int(self.spec.run.get("workers", 0))

    @property
    def output(self) -> Path:
        """The stage's directory."""
        return self.spec.output

    @property
    def resume(self) -> Path:
        """Directory of unfinished work; it survives a kill and is removed on success."""
        directory = self.output / RESUME
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def input(self, role: str, file: str | None = None) -> Path:
        """Return the directory, or a file in it, of the stage that plays `role`; raises `UserError` if it is not there."""
        if role not in self.spec.inputs:
            raise UserError(f"{self.output / SPEC}: inputs.{role}: missing")
        path = self.spec.inputs[role] / file if file else self.spec.inputs[role]
        if not path.exists():
            raise UserError(f"{path}: no such file or directory; run the stage '{role}' first")
        return path

    def write(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Give a temporary name for the output `name`, renamed when the block ends well."""
        return atomic_path(self.output / name)

    def publish_directory(self, name: str) -> None:
        """Rename `resume/<name>`, filled file by file, to the output `name`."""
        target = self.output / name
        if target.exists():
            shutil.rmtree(target)
        os.replace(self.resume / name, target)

    def log(self, message: str) -> None:
        """Write a line to the log and to standard error."""
        line = f"{time.strftime('%H:%M:%S')} [{self.spec.stage} {self.spec.id}] {message}"
        with open(self.output / LOG, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, file=sys.stderr, flush=True)

    def track(
        self, items: Iterable[Item], what: str, total: int | None = None, done: int = 0, status: Callable[[], str] = lambda: ""
    ) -> Iterator[Item]:
        """Iterate with a progress bar on a terminal, and with a line now and then anywhere else.

        Of `total`, `done` were finished by an earlier run. `status` gives the text behind the bar (loss terms, images/s); it is asked for a few times a second at most.
        """
        total = done + len(items) if total is None and isinstance(items, Sized) else total
        start = last = time.monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[status]}"))
            with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
                task = progress.add_task(what, total=total, completed=done, status="")
                for item in items:
                    yield item
                    progress.advance(task)
                    if time.monotonic() - last > 0.5:
                        last = time.monotonic()
                        progress.update(task, status=status())
            return
        for count, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - last >= _SECONDS_BETWEEN_LINES:
                last = now
                rate = count / (now - start)
                left = f", {(total - done - count) / rate:.0f} s left" if total else ""
                self.log(f"{what}: {done + count}/{total or '?'}, {rate:.1f}/s{left}  {status()}".rstrip())


def run_stage(path: Path, kinds: tuple[str, ...], work: Callable[[Stage], None], *, threads: int = 0, gpus: int = 0) -> None:
    """Do a stage: lock its directory, call `work`, write the manifest, remove `resume/`.

    A second process on the same directory (an orphan of a killed workflow) waits for the first and, if that finished, has
    nothing to do. Any exception is logged and raised again; unfinished work stays in `resume/`.
    """
    spec = read_spec(path)
    if spec.stage not in kinds:
        raise UserError(f"{path}: stage: expected {' or '.join(kinds)}, got '{spec.stage}'")
    spec.output.mkdir(parents=True, exist_ok=True)
    threads = threads or os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(threads)
    stage = Stage(spec, threads, gpus)
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:  # a further process of a DDP job: the first one keeps the books
        work(stage)
        return
    with _locked(spec.output / ".lock"):
        if _is_complete(spec):
            stage.log("is finished already; nothing to do")
            return
        for leftover in spec.output.rglob(".*.tmp"):  # of a killed process
            leftover.unlink()
        stage.log(f"starts with {threads} threads")
        start = time.monotonic()
        try:
            if gpus:
                from wsss_core.devices import claim_gpus

                with claim_gpus(gpus) as stage.device:
                    work(stage)
            else:
                work(stage)
        except UserError as error:
            stage.log(f"error: {error}")
            raise
        except BaseException:
            with open(spec.output / LOG, "a", encoding="utf-8") as file:
                file.write(traceback.format_exc())
            raise
        shutil.rmtree(spec.output / RESUME, ignore_errors=True)
        seconds = time.monotonic() - start
        write_json(spec.output / MANIFEST, _manifest(stage, seconds))
        stage.log(f"done in {seconds:.1f} s")


def _is_complete(spec: Spec) -> bool:
    try:
        manifest = read_json(spec.output / MANIFEST)
    except UserError:
        return False
    return manifest.get("id") == spec.id and all((spec.output / name).exists() for name in manifest.get("outputs", {}))


def _manifest(stage: Stage, seconds: float) -> dict[str, Any]:
    spec = stage.spec
    files = sorted(p for p in spec.output.rglob("*") if p.is_file() and p.relative_to(spec.output).parts[0] not in _NOT_OUTPUTS)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "id": spec.id,
        "stage": spec.stage,
        "revision": spec.revision,
        "parameters": spec.parameters,
        "seed": spec.seed,
        "upstream": spec.upstream,
        "files": spec.files,
        "commit": _git_commit(),
        "packages": {name: _version(name) for name in _RECORDED_PACKAGES},
        "python": platform.python_version(),
        "device": stage.device,
        "threads": stage.threads,
        "wall_seconds": round(seconds, 2),
        "peak_memory_mb": round(peak / 1024, 1),
        "peak_gpu_memory_mb": _peak_gpu_memory(),
        **stage.facts,
        "outputs": {str(p.relative_to(spec.output)): sha256(p) for p in files},
    }


def _peak_gpu_memory() -> float | None:
    """The most memory in MB that this process had on one GPU; None if it used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return round(max(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count())) / 2**20, 1)


def _git_commit() -> str | None:
    """Commit of the code, with a mark if files were changed since; None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
