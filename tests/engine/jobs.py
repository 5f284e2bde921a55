"""What worker processes are asked to do in tests, and a study whose cells do it."""

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from soaa_edu.engine import Cell


class Settings(NamedTuple):
    minutes: float = 1.0


SCALES = {"quick": Settings()}


def cells(settings):
    return {
        "fails": missing_file,
        "waits": Cell(pid, needs=("fails",)),
        "fine": pid,
        "endless": lambda: sleep(60),
        "never": pid,
    }


def pid():
    return os.getpid()


def cores_and_memory():
    return sorted(os.sched_getaffinity(0)), os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"]


def missing_file():
    raise FileNotFoundError("no such thing")


class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def odd():
    raise Odd(1, 2)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(folder):
    """Dies at the first call, and answers the second."""
    marker = Path(folder) / "died"
    if not marker.exists():
        marker.touch()
        die()
    return "answered"


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def leave_pid_and_sleep(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)
