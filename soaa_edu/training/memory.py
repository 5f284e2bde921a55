"""What compiled programs need of a device's memory, and what it has."""

import os
from typing import Any

import jax
import numpy as np


def needed(program: Any) -> int:
    """Bytes that a compiled program takes beside its arguments."""
    needs = program.memory_analysis()
    return 0 if needs is None else needs.temp_size_in_bytes + needs.output_size_in_bytes


def free_memory(device: Any) -> float:
    """Bytes that are free on a device, infinity where it does not say."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", np.inf) - stats.get("bytes_in_use", 0)


def free_on_host() -> int:
    """Bytes of this machine's memory that nothing uses."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def exhausted(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a device ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)
