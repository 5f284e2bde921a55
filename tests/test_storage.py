import json
import math
from collections import namedtuple

import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu.storage import (
    StoredFileError,
    load_json,
    load_tree,
    plain,
    save_json,
    save_tree,
    write_atomically,
)

Point = namedtuple("Point", "x y")


def test_writing_makes_the_folders_on_the_way_and_leaves_one_readable_file(tmp_path):
    path = tmp_path / "some" / "where" / "file"
    write_atomically(path, lambda file: file.write(b"content"))
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failing_writer_leaves_the_old_file_and_no_draft(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the new")
        raise error

    with pytest.raises(error):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


TREE = {
    "floats": np.array([1.0, np.nan, np.inf, -0.0]),
    "none": None,
    "nested": [{"ints": np.arange(6).reshape(2, 3)}, (np.float32(2.5), True, 7, "")[:3]],
    "empty": {"dict": {}, "list": [], "tuple": (), "array": np.zeros((0, 3))},
}


def same(found, expected):
    """Whether two trees have the same containers, arrays and types of arrays."""
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[k], expected[k]) for k in expected)
    if isinstance(expected, list | tuple):
        pairs = zip(found, expected, strict=True)
        return type(found) is type(expected) and all(same(a, b) for a, b in pairs)
    if expected is None:
        return found is None
    expected = np.asarray(expected)
    return (found.dtype, found.shape, found.tobytes()) == (
        expected.dtype,
        expected.shape,
        expected.tobytes(),
    )


def test_a_tree_comes_back_as_it_was(tmp_path):
    save_tree(tmp_path / "tree.npz", TREE, {"made": "today"})
    tree, about = load_tree(tmp_path / "tree.npz")
    assert same(tree, TREE)
    assert about == {"made": "today"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "int4", "int8", "bool"])
def test_arrays_of_every_jax_type_come_back(tmp_path, dtype):
    array = jnp.array([0, 1, -2], dtype)
    save_tree(tmp_path / "tree.npz", {"a": array}, {})
    found = load_tree(tmp_path / "tree.npz")[0]["a"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "tree",
    [
        {"a": Point(1.0, 2.0)},
        {1: np.ones(2)},
        {"a": "text"},
        {"a": {1.0}},
        {"a": np.array([Point(1, 2), None], object)},
    ],
    ids=["namedtuple", "integer key", "text", "set", "objects"],
)
def test_a_tree_that_would_not_come_back_is_not_stored(tmp_path, tree):
    with pytest.raises(TypeError, match="cannot be stored"):
        save_tree(tmp_path / "tree.npz", tree, {})
    assert not list(tmp_path.iterdir())


def store_with_pickle(path):
    header = json.dumps({"tree": {"array": 0, "dtype": "object"}, "about": {}})
    np.savez(path, header=header, array_0=np.array([{}], object))


def truncate(path):
    save_tree(path, TREE, {})
    path.write_bytes(path.read_bytes()[:-100])


def store_something_else(path):
    np.savez(path, weights=np.ones(3))


@pytest.mark.parametrize(
    "make", [lambda path: None, truncate, store_with_pickle, store_something_else]
)
def test_a_file_that_is_no_tree_is_refused_by_name(tmp_path, make):
    path = tmp_path / "tree.npz"
    make(path)
    with pytest.raises(StoredFileError, match=r"tree.npz cannot be read .*: restore the file"):
        load_tree(path)


def test_json_comes_back_as_plain_numbers(tmp_path):
    content = {
        "point": Point(np.float32(1.5), np.int64(3)),
        "arrays": [np.arange(3), jnp.ones((2, 2), jnp.bfloat16)],
        "words": ["a", None, True, 10**20],
        7: {},
    }
    save_json(tmp_path / "file.json", content)
    assert load_json(tmp_path / "file.json") == {
        "point": {"x": 1.5, "y": 3},
        "arrays": [[0, 1, 2], [[1, 1], [1, 1]]],
        "words": ["a", None, True, 10**20],
        "7": {},
    }


def test_floats_keep_six_digits():
    assert plain([1 / 3, np.float64(123456789.0), 1e-300]) == [0.333333, 123457000.0, 1e-300]


def test_nan_becomes_null_and_nan_again(tmp_path):
    path = tmp_path / "file.json"
    save_json(path, {"loss": np.array([1.0, np.nan, np.inf, -np.inf]), "one": math.nan})
    content = load_json(path)
    assert content == {"loss": [1.0, None, None, None], "one": None}
    np.testing.assert_array_equal(np.array(content["loss"], float), [1, np.nan, np.nan, np.nan])


def test_json_has_a_line_for_each_key_and_row(tmp_path):
    path = tmp_path / "file.json"
    save_json(path, {"a": {"b": [1, 2]}, "c": np.eye(2)})
    assert path.read_text().splitlines() == [
        "{",
        '  "a": {',
        '    "b": [1, 2]',
        "  },",
        '  "c": [',
        "    [1.0, 0.0],",
        "    [0.0, 1.0]",
        "  ]",
        "}",
    ]


@pytest.mark.parametrize("text", [None, '{"a": 1', "\xff\xfe"])
def test_json_that_cannot_be_read_is_refused_by_name(tmp_path, text):
    path = tmp_path / "file.json"
    if text is not None:
        path.write_text(text, "latin-1")
    with pytest.raises(StoredFileError, match=r"file\.json"):
        load_json(path)
