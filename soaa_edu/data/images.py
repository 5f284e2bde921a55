"""MNIST, shipped with the package and checked when it is read."""

import gzip
import hashlib
import zlib
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from soaa_edu import checks
from soaa_edu.data.dataset import Dataset
from soaa_edu.data.files import DataFileError

MNIST_FOLDER = Path(__file__).parent / "mnist"
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte.gz": (
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}


def mnist(train_size: int | None = None) -> Dataset:
    """The 60,000 training and 10,000 test digits of MNIST (LeCun et al. 1998).

    Args:
        train_size: keep this many training images, always the same ones, as evenly spread over the
            ten classes as their counts allow. ``None`` keeps all.

    Returns:
        ``Dataset`` with ``x`` float32 ``(n, 784)``, pixels in [0, 1] normalised with mean 0.1307
        and standard deviation 0.3081, and ``y`` int32 ``(n,)``.

    Raises:
        DataFileError: a file is missing, truncated or altered.
        ValueError: ``train_size`` is not between 1 and 60,000.
    """
    train_images, train_labels, test_images, test_labels = (
        _read_again_if_changed(MNIST_FOLDER / name, digest) for name, digest in MNIST_SHA256.items()
    )
    if train_size is not None:
        chosen = balanced_subset(train_labels, train_size)
        train_images, train_labels = train_images[chosen], train_labels[chosen]
    return Dataset(
        train=(_normalised(train_images), jnp.asarray(train_labels, jnp.int32)),
        test=(_normalised(test_images), jnp.asarray(test_labels, jnp.int32)),
    )


def read_idx(path: Path, sha256: str) -> np.ndarray:
    """The array in a gzipped IDX file of unsigned bytes, once its content has the given SHA-256.

    Raises:
        DataFileError: the file is missing, cannot be unpacked, or holds other content.
    """
    remedy = f"Put the original file back: reinstall soaa-edu, or copy it anew to {path}."
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise DataFileError(f"{path.name} is missing. {remedy}") from error
    except (EOFError, OSError, zlib.error) as error:
        raise DataFileError(f"{path.name} cannot be unpacked ({error}). {remedy}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataFileError(f"{path.name} does not hold the original data. {remedy}")
    axes = content[3]
    shape = np.frombuffer(content, ">u4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _read_again_if_changed(path: Path, sha256: str) -> np.ndarray:
    return _read_once(path, sha256, path.stat().st_mtime_ns if path.exists() else None)


@lru_cache(maxsize=len(MNIST_SHA256))
def _read_once(path: Path, sha256: str, modified: int | None) -> np.ndarray:
    return read_idx(path, sha256)


def balanced_subset(labels: np.ndarray, size: int) -> np.ndarray:
    """Indices, ascending, of the first ``size`` examples when the classes take turns.

    Raises:
        ValueError: ``size`` is not a whole number between 1 and the number of labels.
    """
    checks.whole("train_size", size)
    if size > len(labels):
        raise ValueError(f"train_size must be at most {len(labels)}, got {size}")
    turn = np.empty(len(labels), int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turn[members] = np.arange(len(members))
    return np.sort(np.argsort(turn, kind="stable")[:size])


def _normalised(images: np.ndarray) -> jax.Array:
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    return jnp.asarray((pixels - np.float32(MNIST_MEAN)) / np.float32(MNIST_STD))
