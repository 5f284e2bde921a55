"""pyproject.toml, requirements.lock and environment.yml name the same packages."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


def specifiers(requirements):
    """The version specifier of each requirement, under its normalised name."""
    parsed = [Requirement(requirement) for requirement in requirements]
    return {canonicalize_name(r.name): r.specifier for r in parsed}


def test_lock_is_a_list_of_exact_versions_without_addresses():
    pin = re.compile(r"[\w.-]+==\d[\w.]*( ; [\w\s.'<>=!()]+)?")
    assert [line for line in LOCK if not pin.fullmatch(line)] == []


def test_lock_names_each_package_once():
    assert len(specifiers(LOCK)) == len(LOCK)


@pytest.mark.parametrize(
    "dependencies",
    [
        pytest.param(PYPROJECT["build-system"]["requires"], id="build"),
        pytest.param(PROJECT["dependencies"], id="runtime"),
        *[pytest.param(EXTRAS[extra], id=extra) for extra in ("test", "site", "bench")],
    ],
)
def test_lock_satisfies_pyproject(dependencies):
    locked = specifiers(LOCK)
    for name, allowed in specifiers(dependencies).items():
        (pin,) = locked[name]
        assert allowed.contains(pin.version), f"{name} {pin.version} is not {allowed}"


def test_environment_names_the_runtime_and_test_packages():
    conda = specifiers([item for item in ENVIRONMENT if isinstance(item, str)])
    assert conda.pop("python") == PROJECT["requires-python"]
    assert conda.pop("pip") == ""
    assert conda == specifiers([*PROJECT["dependencies"], *EXTRAS["test"]])


def test_environment_installs_the_package_itself():
    assert [item["pip"] for item in ENVIRONMENT if isinstance(item, dict)] == [["-e ."]]
