import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import two_processes

CHECKS = Path(__file__).with_name("eight_devices.py")


def test_training_on_eight_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": flags,
    }
    command = [sys.executable, "-m", "pytest", "-q", "--durations=9", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*command, CHECKS], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_two_processes_train_as_one_does(float64, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=1"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", "XLA_FLAGS": flags}
    both = [
        subprocess.Popen(
            [sys.executable, two_processes.__file__, port, process, tmp_path],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in "01"
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], errors
    alone = two_processes.told(None)
    for process in "01":
        with np.load(tmp_path / f"{process}.npz") as found:
            for name, values in alone.items():
                np.testing.assert_allclose(found[name], values, rtol=1e-9, err_msg=name)
