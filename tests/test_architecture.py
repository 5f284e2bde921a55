import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import soaa_edu

ROOT = Path(soaa_edu.__file__).parent
FLOORS = [
    {"__main__"},
    {"cli"},
    {"findings"},
    {"claims", "choices"},
    {"studies"},
    {"engine"},
    {"training", "timing", "plotting"},
    {"optimizers"},
    {"kronecker", "micro_batches"},
    {"curvature", "linear_solvers", "differential_equations"},
    {"objective", "models", "problems", "data"},
    {"checks", "precision", "provenance", "storage"},
]
SHARED_BY_OPTIMIZERS = {
    "blocks",
    "diagonal_fisher",
    "eigenbases",
    "layer_steps",
    "parameters",
    "protocol",
    "refreshes",
    "spans",
    "transformations",
    "trials",
}
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.py"))
}
MODULES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
every_module = pytest.mark.parametrize("name", MODULES)


def imports(tree):
    """The dotted names that a module imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name):
    """The modules of this package that a module imports, as paths such as optimizers/newton."""
    for imported in imports(MODULES[name]):
        package, _, rest = imported.partition(".")
        if package == "soaa_edu":
            yield rest.replace(".", "/")


def floor(path):
    """The number of the floor on which a module stands, the top one being zero."""
    unit = path.split("/")[0]
    (found,) = [i for i, units in enumerate(FLOORS) if unit in units]
    return found


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_imports_run_one_way_down(name):
    unit = name.split("/")[0]
    upwards = [
        imported
        for imported in own_imports(name)
        if imported.split("/")[0] != unit and floor(imported) <= floor(name)
    ]
    assert upwards == []


@pytest.mark.parametrize("name", [n for n in MODULES if re.match("optimizers/(?!__init__)", n)])
def test_no_optimizer_imports_another(name):
    beside = [imported for imported in own_imports(name) if imported.startswith("optimizers")]
    assert [i for i in beside if i.split("/")[1] not in SHARED_BY_OPTIMIZERS] == []


@every_module
def test_only_plotting_and_the_studies_import_matplotlib(name):
    if name.split("/")[0] not in ("plotting", "studies"):
        assert [m for m in imports(MODULES[name]) if m.startswith("matplotlib")] == []


@every_module
def test_only_public_names_of_other_packages_are_used(name):
    tree = MODULES[name]
    imported = [part for module in imports(tree) for part in module.split(".")]
    attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    public_in_spite = {"_asdict", "_replace", "_fields"}
    private = [
        part
        for part in [*imported, *attributes]
        if part.startswith("_") and not part.endswith("__") and part not in public_in_spite
    ]
    assert private == []


@every_module
def test_every_public_function_and_class_says_what_it_is(name):
    tree = MODULES[name]
    kinds = ast.FunctionDef | ast.ClassDef
    silent = [
        node.name
        for node in tree.body
        if isinstance(node, kinds)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert silent == []
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("package", [soaa_edu, soaa_edu.data, soaa_edu.optimizers])
def test_every_name_that_a_package_offers_is_there(package):
    assert [name for name in package.__all__ if not hasattr(package, name)] == []
    assert list(package.__all__) == sorted(package.__all__)


def test_importing_the_library_draws_in_no_plotting_and_starts_no_device():
    code = (
        "import sys, soaa_edu, jax\n"
        "assert not [m for m in sys.modules if m.startswith('matplotlib')]\n"
        "jax.config.update('jax_num_cpu_devices', 2)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
