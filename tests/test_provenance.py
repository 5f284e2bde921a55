import importlib.util
import json
import shutil
import subprocess
import sys
from importlib.metadata import version

import jax
import pytest

from soaa_edu import provenance as library


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git checkout with the module in it, and a way to call git there."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    package = tmp_path / "package"
    package.mkdir()
    shutil.copy(library.__file__, package / "provenance.py")

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    return package, git


def commit_told(package):
    spec = importlib.util.spec_from_file_location("copied", package / "provenance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.provenance()["commit"]


def test_versions_are_those_installed():
    told = library.provenance()
    for name in ("jax", "optax", "numpy", "scipy"):
        assert told[name] == version(name)


def test_it_is_plain_json():
    told = library.provenance()
    assert json.loads(json.dumps(told)) == told


def test_it_tells_the_precision():
    with jax.enable_x64(True):
        assert library.provenance()["float64"] is True
    assert library.provenance()["float64"] is False


def test_the_commit_is_that_of_the_checkout_and_marked_once_something_changed(checkout):
    package, git = checkout
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "--short=12", "HEAD")
    assert commit_told(package) == commit
    (package / "other.py").write_text("x = 1")
    assert commit_told(package) == commit + "+"


def test_a_package_that_the_checkout_around_it_does_not_hold_has_no_commit(checkout):
    package, git = checkout
    git("commit", "--allow-empty", "-m", "first")
    assert commit_told(package) == "not in a checkout"
