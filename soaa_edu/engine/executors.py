"""Where cells are computed: in this process, in processes of this machine, or on a cluster.

All have the interface of ``concurrent.futures``; a ``Place`` says how many cells one takes at once.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from soaa_edu import checks

SHARED_MEMORY = 0.9
"""Of an accelerator's memory, for all workers together."""
TRIES = 2


class WorkerError(Exception):
    """A worker process died, and died again when its cell was tried a second time."""


class Place(NamedTuple):
    """Where cells are computed.

    Attributes:
        executor: of ``concurrent.futures``.
        at_once: how many cells it takes at a time.
        give_up: stops what it computes, at once.
    """

    executor: Executor
    at_once: int
    give_up: Callable[[], None]


class _Here(Executor):
    """Computes at once what it is given, in this process."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def here() -> Iterator[Place]:
    """This process, one cell at a time."""
    yield Place(_Here(), 1, lambda: None)


@contextmanager
def processes(workers: int) -> Iterator[Place]:
    """So many new processes of this machine, which share its cores and its GPU's memory.

    A worker that dies is replaced, and what it computed is tried once more.

    Raises:
        ValueError: no whole number of workers, or none.
    """
    checks.whole("workers", workers)
    own = threading.local()
    slots = iter(range(workers))
    alive: set[_Worker] = set()
    given_up = threading.Event()

    def begin() -> None:
        own.slot, own.worker = next(slots), None

    def ask(function: Callable, *arguments: Any) -> Any:
        for _ in range(TRIES):
            if own.worker is None:
                own.worker = _started(own.slot, workers)
                alive.add(own.worker)
            if given_up.is_set():
                raise WorkerError("given up")
            try:
                own.worker.connection.send((function, arguments))
                fine, answer = own.worker.connection.recv()
            except (EOFError, OSError):
                own.worker.process.join()
                code = own.worker.process.exitcode
                alive.discard(own.worker)
                own.worker = None
                continue
            if fine:
                return answer
            raise answer
        raise WorkerError(
            f"a worker process died twice at the same cell (exit code {code}): out of memory, "
            "perhaps; try fewer --workers"
        )

    def give_up() -> None:
        given_up.set()
        for worker in list(alive):
            worker.process.kill()

    class Asked(ThreadPoolExecutor):
        """Each thread has a process, and waits for its answers."""

        def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
            return super().submit(ask, fn, *args, **kwargs)

    executor = Asked(workers, initializer=begin)
    try:
        yield Place(executor, workers, give_up)
    finally:
        give_up()
        executor.shutdown(cancel_futures=True)


class _Worker(NamedTuple):
    process: Any
    connection: Connection


def _started(slot: int, workers: int) -> _Worker:
    """A new process: a fork would inherit the threads of JAX, which do not survive it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, slot, workers), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(connection: Connection, slot: int, workers: int) -> None:
    """Answer one question after the other, with this worker's share of the machine."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _take_share(slot, workers)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            reply = (True, function(*arguments))
        except Exception as error:
            reply = (False, _portable(error))
        connection.send(reply)


def _take_share(slot: int, workers: int) -> None:
    """Before JAX looks: its share of a GPU's memory, and its cores of those there are."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{SHARED_MEMORY / workers:.3f}")
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[slot::workers] or cores)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, as another error where it cannot be sent."""
    trace = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(trace)
    return error


@contextmanager
def on_cluster(address: str, patience: float = 10.0) -> Iterator[Place]:
    """A running Dask cluster, by the address of its scheduler, a cell for each of its workers.

    Dask itself tries again where a worker dies.

    Raises:
        ImportError: Dask's ``distributed`` is not installed.
        ValueError: an address without a port.
        OSError: nobody answers there for ``patience`` seconds, or no worker is there.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError('--cluster needs distributed: pip install "soaa-edu[cluster]"') from error
    if not address.rpartition(":")[2].isdigit():
        raise ValueError(f"a cluster's address is like tcp://HOST:8786, got {address!r}")
    try:
        client = Client(address, timeout=patience, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OSError(
            f"no Dask scheduler answers at {address} ({error}): start one with dask scheduler, or "
            "see its log for the address"
        ) from error
    with client:
        workers = len(client.nthreads())
        if workers == 0:
            raise OSError(
                f"the cluster at {address} has no workers: start some with dask worker {address} "
                "--nthreads 1"
            )
        executor = client.get_executor(pure=False)
        yield Place(executor, workers, lambda: executor.shutdown(wait=False, cancel_futures=True))
