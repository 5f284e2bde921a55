import gzip
import hashlib
import shutil

import numpy as np
import pytest

from soaa_edu.data import DataFileError, images, mnist

DIGESTS = {
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


def content(name):
    return gzip.decompress((images.MNIST_FOLDER / name).read_bytes())


@pytest.fixture
def broken_folder(tmp_path, monkeypatch):
    """A copy of the data files that a test may break."""
    folder = tmp_path / "mnist"
    shutil.copytree(images.MNIST_FOLDER, folder)
    monkeypatch.setattr(images, "MNIST_FOLDER", folder)
    return folder


@pytest.mark.parametrize("name", DIGESTS)
def test_the_package_ships_the_published_content(name):
    assert hashlib.sha256(content(name)).hexdigest() == DIGESTS[name]


def test_shapes_and_types(digits):
    arrays = (*digits.train, *digits.test)
    assert [array.shape for array in arrays] == [(60_000, 784), (60_000,), (10_000, 784), (10_000,)]
    assert [array.dtype for array in arrays] == ["float32", "int32", "float32", "int32"]


@pytest.mark.parametrize("half, prefix", [("train", "train"), ("test", "t10k")])
def test_images_are_the_stored_pixels_normalised(digits, half, prefix):
    x, _ = getattr(digits, half)
    stored = content(f"{prefix}-images-idx3-ubyte.gz")[16:]
    for index in (0, 4321, len(x) - 1):
        pixels = np.array(list(stored[784 * index : 784 * (index + 1)]))
        np.testing.assert_allclose(x[index], (pixels / 255 - 0.1307) / 0.3081, rtol=0, atol=1e-6)


@pytest.mark.parametrize("half, prefix", [("train", "train"), ("test", "t10k")])
def test_labels_are_the_stored_ones(digits, half, prefix):
    _, y = getattr(digits, half)
    assert bytes(np.asarray(y, np.uint8)) == content(f"{prefix}-labels-idx1-ubyte.gz")[8:]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_byte(path):
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(packed)


def swap_two_pixels(path):
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[1000] ^= 1
    path.write_bytes(gzip.compress(data, 1))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, swap_two_pixels, empty])
def test_a_damaged_file_is_named_with_the_remedy(broken_folder, damage):
    path = broken_folder / "t10k-images-idx3-ubyte.gz"
    damage(path)
    with pytest.raises(DataFileError, match=rf"^{path.name} .*reinstall soaa-edu.*{path}"):
        images.read_idx(path, images.MNIST_SHA256[path.name])


@pytest.mark.parametrize("name", DIGESTS)
def test_mnist_refuses_to_load_without_one_of_its_files(broken_folder, name):
    (broken_folder / name).unlink()
    with pytest.raises(DataFileError, match=f"{name} is missing.*reinstall soaa-edu"):
        mnist()


def test_a_file_that_is_damaged_after_it_was_read_is_read_again(broken_folder):
    mnist(1)
    truncate(broken_folder / "train-labels-idx1-ubyte.gz")
    with pytest.raises(DataFileError, match=r"train-labels.* cannot be unpacked"):
        mnist(1)


def test_mnist_refuses_a_file_with_other_content(broken_folder):
    test_labels = broken_folder / "t10k-labels-idx1-ubyte.gz"
    shutil.copy(test_labels, broken_folder / "train-labels-idx1-ubyte.gz")
    with pytest.raises(DataFileError, match=r"train-labels.*does not hold the original data"):
        mnist()


@pytest.mark.parametrize(
    "size, chosen",
    [
        (1, [0]),
        (2, [0, 3]),
        (3, [0, 3, 5]),
        (4, [0, 1, 3, 5]),
        (5, [0, 1, 3, 4, 5]),
        (6, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_classes_take_turns_in_a_balanced_subset(size, chosen):
    labels = np.array([7, 7, 7, 2, 2, 9])
    np.testing.assert_array_equal(images.balanced_subset(labels, size), chosen)


@pytest.mark.parametrize("size", [10, 999, 54_210])
def test_a_subset_of_mnist_is_as_balanced_as_can_be(digits, size):
    labels = np.asarray(digits.train[1])
    chosen = images.balanced_subset(labels, size)
    counts = np.bincount(labels[chosen], minlength=10)
    assert len(np.unique(chosen)) == counts.sum() == size
    assert counts.max() - counts.min() <= 1


def test_train_size_keeps_the_first_digits_of_each_class(digits):
    x, y = digits.train
    first_ten = [np.flatnonzero(np.asarray(y) == label)[:10] for label in range(10)]
    rows = np.sort(np.concatenate(first_ten))
    subset = mnist(train_size=100)
    np.testing.assert_array_equal(subset.train[0], x[rows])
    np.testing.assert_array_equal(subset.train[1], y[rows])
    np.testing.assert_array_equal(subset.test[0], digits.test[0])


@pytest.mark.parametrize("size", [0, -1, 2.5, 60_001])
def test_an_impossible_train_size_is_refused(digits, size):
    with pytest.raises(ValueError, match="train_size must be"):
        images.balanced_subset(np.asarray(digits.train[1]), size)
