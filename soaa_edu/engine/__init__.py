"""The engine of the studies: cells computed here, in worker processes or on a cluster, and kept.

A study is a module, or a file, with ``SCALES``, scale -> settings, a NamedTuple whose ``minutes``
are an estimate for the whole of it, and ``cells(settings)``, name -> a function or a ``Cell``.
"""

from soaa_edu.engine.cells import Cell, cells_of, estimates, module_of, origin
from soaa_edu.engine.executors import Place, WorkerError, here, on_cluster, processes
from soaa_edu.engine.rehearse import Rehearsed, rehearse
from soaa_edu.engine.results import device_note, devices, read
from soaa_edu.engine.run import Unfinished, alone, compute, finish, forget, remaining, take_up

__all__ = [
    "Cell",
    "Place",
    "Rehearsed",
    "Unfinished",
    "WorkerError",
    "alone",
    "cells_of",
    "compute",
    "device_note",
    "devices",
    "estimates",
    "finish",
    "forget",
    "here",
    "module_of",
    "on_cluster",
    "origin",
    "processes",
    "read",
    "rehearse",
    "remaining",
    "take_up",
]
