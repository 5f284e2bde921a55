import os
import subprocess
import sys
from pathlib import Path

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
