"""Run chapters from top to bottom, two at a time, and save them with their outputs.

python book/execute.py FOLDER CHAPTER.ipynb ...
"""

import asyncio
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError


async def execute(chapter: Path, folder: Path, turns: asyncio.Semaphore) -> str:
    """Run ``chapter`` where it lies and save the result in ``folder``; return what went wrong."""
    notebook = nbformat.read(chapter, as_version=4)
    client = NotebookClient(
        notebook,
        resources={"metadata": {"path": str(chapter.parent)}},
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
    )
    async with turns:
        start = time.perf_counter()
        try:
            await client.async_execute()
        except (CellExecutionError, DeadKernelError) as error:
            return f"{chapter} failed: {error}"
        print(f"{chapter}: {time.perf_counter() - start:.0f} s", flush=True)
    nbformat.write(notebook, folder / chapter.name)
    return ""


async def main() -> str:
    """Run all chapters; return what went wrong."""
    folder, *chapters = map(Path, sys.argv[1:])
    turns = asyncio.Semaphore(2)
    failures = await asyncio.gather(*(execute(chapter, folder, turns) for chapter in chapters))
    return "\n\n".join(filter(None, failures))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()) or None)
