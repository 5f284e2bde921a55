"""Where a number came from: versions, device, commit, time."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

PACKAGES = ("soaa-edu", "jax", "jaxlib", "optax", "numpy", "scipy", "matplotlib")


def provenance() -> dict[str, Any]:
    """Versions, device, precision, commit and time, as plain strings and numbers.

    Raises:
        ValueError: JAX has no such device as ``JAX_PLATFORMS`` asks for.
    """
    try:
        device = jax.devices()[0]
    except RuntimeError as error:
        raise ValueError(
            f"JAX cannot use the device that it is to use: set JAX_PLATFORMS to cpu or cuda, or "
            f"leave it unset ({error})"
        ) from error
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cpu_cores": os.cpu_count(),
        "float64": bool(jnp.zeros(()).dtype == jnp.float64),
        "commit": _commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of the checkout around this file, with ``+`` where the library has changed."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", __file__)
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return "not in a checkout"
    return commit + ("+" if tracked and changed else "")
