"""Results on disk: written whole or not at all, read without pickle."""

import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np


class StoredFileError(Exception):
    """A stored result cannot be read."""


def write_atomically(path: Path | str, write: Callable[[BinaryIO], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in place in one move."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def save_json(path: Path | str, content: Any) -> None:
    """Write dicts, lists, strings, numbers and arrays as JSON a person can read.

    Arrays become lists, floats keep six significant digits, ``nan`` and infinities become null.
    """
    text = _json_text(plain(content)) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def load_json(path: Path | str) -> Any:
    """Read JSON, null as ``nan`` once it is put into a float array.

    Raises:
        StoredFileError: the file is missing, truncated or not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise StoredFileError(
            f"{path} cannot be read ({error}): restore the file, or compute it again"
        ) from error


def save_tree(path: Path | str, tree: Any, about: dict[str, Any]) -> None:
    """Write a pytree of dicts, lists, tuples, ``None`` and arrays, and plain words about it.

    Raises:
        TypeError: the tree has another container.
    """
    arrays: list[np.ndarray] = []
    header = json.dumps({"tree": _skeleton(tree, arrays), "about": about})
    contents: dict[str, Any] = {f"array_{i}": array for i, array in enumerate(arrays)}
    write_atomically(path, lambda file: np.savez_compressed(file, header=header, **contents))


def load_tree(path: Path | str) -> tuple[Any, dict[str, Any]]:
    """The pytree, of NumPy arrays, and the words that ``save_tree`` wrote.

    Raises:
        StoredFileError: the file is missing, truncated or of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            arrays = [file[f"array_{i}"] for i in range(len(file.files) - 1)]
    except Exception as error:
        raise StoredFileError(
            f"{path} cannot be read ({error}): restore the file, or compute it again"
        ) from error
    return _tree(header["tree"], arrays), header["about"]


def plain(value: Any) -> Any:
    """The value as JSON will give it back: lists, strings, six digits, null for ``nan``."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _json_text(value: Any, indent: str = "") -> str:
    """JSON with a line for each key, and lists of numbers on one line."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        lines = (f"{inner}{json.dumps(k)}: {_json_text(v, inner)}" for k, v in value.items())
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        return "[\n" + ",\n".join(inner + _json_text(v, inner) for v in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)


def _skeleton(tree: Any, arrays: list[np.ndarray]) -> Any:
    if tree is None:
        return None
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _skeleton(part, arrays) for key, part in tree.items()}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_skeleton(part, arrays) for part in tree]}
    if not isinstance(tree, np.ndarray | np.generic | jax.Array | float | int):
        raise TypeError(
            f"a {type(tree).__name__} cannot be stored: turn it into dicts with string keys, "
            "lists, tuples and arrays first"
        )
    array = np.asarray(tree)
    if array.dtype.kind == "O":
        raise TypeError("an array of Python objects cannot be stored: store numbers")
    dtype = array.dtype.name
    if array.dtype.kind == "V":
        array = array.view(f"u{array.dtype.itemsize}")
    arrays.append(array)
    return {"array": len(arrays) - 1, "dtype": dtype}


def _tree(skeleton: Any, arrays: list[np.ndarray]) -> Any:
    if skeleton is None:
        return None
    if "dict" in skeleton:
        return {key: _tree(part, arrays) for key, part in skeleton["dict"].items()}
    if "list" in skeleton:
        return [_tree(part, arrays) for part in skeleton["list"]]
    if "tuple" in skeleton:
        return tuple(_tree(part, arrays) for part in skeleton["tuple"])
    array = arrays[skeleton["array"]]
    return (
        array if array.dtype.name == skeleton["dtype"] else array.view(jnp.dtype(skeleton["dtype"]))
    )
