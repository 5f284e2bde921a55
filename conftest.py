"""Chapters checked side by side talk to their kernels through files, not network ports.

A kernel binds its ports a second after they were chosen; meanwhile another process may be given
one of them, and the kernel dies.
"""

import tempfile
import uuid

import nbval.kernel
from jupyter_client.manager import KernelManager


def _kernel_manager(**options):
    connection_file = f"{tempfile.gettempdir()}/kernel-{uuid.uuid4()}.json"
    return KernelManager(transport="ipc", connection_file=connection_file, **options)


nbval.kernel.KernelManager = _kernel_manager
