"""Prints the XLA flags with which programs that run a few times compile soonest.

A flag that a version of JAX does not know ends every process, so each is tried in one of its own.
"""

import os
import subprocess
import sys

FLAGS = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")


def is_known(flag):
    environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(start, env=environment, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    print(*filter(is_known, FLAGS))
