"""A function over many images in several processes, in order, with bounded memory and with progress."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from wsss_core.stage import Stage

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 4  # images per process that are under way or wait for the consumer: bounds memory, evens out slow images
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def map_images(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int, stage: Stage, what: str, *, done: int = 0
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of `items`, showing progress through `stage.track`.

    Processes, not threads: pydensecrf holds the interpreter's lock. Workers come from a fork server that imports the
    function's module and nothing else, hence no torch; each computes with one thread, and ends when the parent does,
    however that ends (after the image it is at). Hand over paths, not pixels: workers read their own images. They also import
    the caller's main module, as Python has it, unless it is the `__main__` of a package, as this one's is.

    Parameters
    ----------
    function
        Picklable: a function of a module, or a `functools.partial` of one.
    items
        Picklable and small.
    processes
        Number of workers; at most 1: a plain loop in this process.
    what
        Says what is counted, such as "refining images".
    done
        Images that were finished earlier, for the progress display.

    Raises
    ------
    Exception
        Whatever `function` raised (`UserError` too), for the first item in order that raised; RuntimeError if a worker was killed.
    """
    processes = min(processes, len(items))
    total = done + len(items)
    if processes <= 1:
        for item in stage.track(items, what, total, done):
            yield function(item)
        return
    context = multiprocessing.get_context("forkserver")
    module = getattr(getattr(function, "func", function), "__module__", __name__)
    context.set_forkserver_preload([module])
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
    pending: deque[Future[Result]] = deque()
    waiting = iter(items)
    try:
        with _one_thread_per_worker():  # the first submission starts all workers
            pending.append(executor.submit(function, next(waiting)))
        for _ in stage.track(range(len(items)), what, total, done):
            for item in waiting:
                pending.append(executor.submit(function, item))
                if len(pending) >= _AHEAD * processes:
                    break
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise RuntimeError(f"{what}: a worker process died (out of memory?); finished work is kept") from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # returns when the parent is gone, even by SIGKILL
        os._exit(1)


@contextlib.contextmanager
def _one_thread_per_worker() -> Iterator[None]:
    """Set the thread limits that libraries read when they are loaded, for processes started meanwhile."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
