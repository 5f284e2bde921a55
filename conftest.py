"""The package is tested where it lies, installed or not, also in processes that tests start.

Chapters checked side by side talk to their kernels through files, not network ports: a kernel binds
its ports a second after they were chosen; meanwhile another process may be given one of them, and
the kernel dies.
"""

import os
import tempfile
import uuid
from importlib.util import find_spec
from pathlib import Path

os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

if find_spec("nbval"):
    import nbval.kernel
    from jupyter_client.manager import KernelManager

    def _kernel_manager(**options):
        connection_file = f"{tempfile.gettempdir()}/kernel-{uuid.uuid4()}.json"
        return KernelManager(transport="ipc", connection_file=connection_file, **options)

    nbval.kernel.KernelManager = _kernel_manager
