"""Published data files that do not ship with the package: where they lie, and where they are from.

They are looked for in the folder that the environment variable ``SOAA_EDU_DATA`` names, or else in
``.cache/soaa_edu`` in the user's home folder.
"""

import hashlib
import http.client
import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from soaa_edu.storage import write_atomically

TIMEOUT = 30


class DataFileError(Exception):
    """A data file is missing, truncated or altered."""


class Published(NamedTuple):
    """A file that a project has published.

    Attributes:
        name: of the file, as it is published and as it is looked for.
        project: who has published it.
        address: where to download it.
        sha256: of its content, for a file that ``fetch`` can download from its address.
        size: bytes of its content.
    """

    name: str
    project: str
    address: str
    sha256: str = ""
    size: int = 0

    @property
    def path(self) -> Path:
        """Where the file is looked for."""
        return data_folder() / self.name

    @property
    def remedy(self) -> str:
        """What to download, from which project, and where to put it."""
        by_itself = "Call again with fetch=True. Or download" if self.sha256 else "Download"
        return (
            f"{by_itself} {self.name} of {self.project} from {self.address} and put it at "
            f"{self.path}, or in another folder and name that folder in SOAA_EDU_DATA."
        )


def data_folder() -> Path:
    """The folder named in ``SOAA_EDU_DATA``, or ``.cache/soaa_edu`` in the user's home folder."""
    named = os.environ.get("SOAA_EDU_DATA")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "soaa_edu"


@contextmanager
def reading(file: Published) -> Iterator[Path]:
    """The path of a published file, every failure to read it raising an error with its remedy.

    Raises:
        DataFileError: the file is missing, truncated, altered or of another format.
    """
    try:
        yield file.path
    except FileNotFoundError as error:
        raise DataFileError(f"{file.name} is missing. {file.remedy}") from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise DataFileError(f"{file.name} cannot be read ({cause}). {file.remedy}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_bytes())


def verified(file: Published, content: bytes) -> bytes:
    """The content, once it has the SHA-256 of the file.

    Raises:
        ValueError: it has another.
    """
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ValueError("it does not hold the original data")
    return content


def fetch(file: Published) -> None:
    """Download a file to the place where it is looked for, once its content has been verified.

    Raises:
        DataFileError: it cannot be downloaded or written, or holds other content.
    """
    try:
        with urllib.request.urlopen(file.address, timeout=TIMEOUT) as response:
            content = verified(file, response.read(file.size + 1))
        write_atomically(file.path, lambda draft: draft.write(content))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataFileError(f"{file.name} cannot be fetched ({error}). {file.remedy}") from error
