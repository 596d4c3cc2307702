"""The floors and walls of the house, the folders it ships, and what every file in it owes its reader.

A failure here is about the place of code, not about what it computes. ARCHITECTURE.md has the reasons.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import onnxq
from onnxq import operators

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

# Imports go down, or stay on their floor. Imports under TYPE_CHECKING and inside functions count like any other:
# to name a type of a floor above is to know that floor. A package is one entry, with all its files.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        *("errors", "numerics", "blocks", "feedback", "counting", "_counting", "histogram", "pointwise", "added"),
        *("monitor", "naming", "operators", "scratch", "shares", "smallest", "timing", "blas"),
        *("work", "dtypes", "channels", "npz"),
    ),
    ("graph", "files", "runtime", "calibrators", "customs", "inference", "formats", "memory"),
    (
        "ahead",
        "blocked",
        "targets",
        "statistics",
        "patterns",
        "integer_conv",
        "linear",
        "centring",
        "caches",
        "checks",
        "schemas",
        "executed",
        "rescaling",
        "half_range",
        "lifting",
        "restated",
        "packed",
        "forms",
        "exposing",
        "checkpoint",
        "interface",
        "seen",
        "segments",
        "sharers",
        "shifted",
        "smoothed",
    ),
    ("recipe", "kinds", "modes", "schemes", "inventory"),
    (
        "outcome",
        "plan",
        "pipeline",
        "data",
        "choose",
        "coarse",
        "precision",
        "placement",
    ),
    (
        "passes",
        "collect",
        "on_cpu",
        "on_device",
        "parts",
        "relay",
        "rows",
        "intake",
        "compared",
        "comparison",
        "proof",
        "improvement",
        "weights",
        "emulation",
        "halves",
        "planning",
    ),
    ("page", "api", "report", "exchange", "proving", "reporting", "search", "improving", "leaving", "tried", "handout"),
    (
        "cli",
        "cli_options",
        "cli_search",
        "cli_statistics",
        "cli_views",
        "progress",
        "tables",
        "__main__",
        "onnxq",
    ),  # onnxq: the public names, which are for users and the command line only
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}

# package -> the only modules that may import it
WALLS: dict[str, set[str]] = {
    "onnx_ir": {"graph", "files"},
    "onnx_graphsurgeon": {"graph"},
    "onnxruntime": {"runtime"},
    "polygraphy": {"data"},
    "click": {"cli", "cli_options", "cli_search", "cli_statistics", "cli_views"},
    "jinja2": {"page"},
    "rich": {"tables", "progress"},
    "threadpoolctl": {"blas"},
    "distributed": {"parts"},
    "PIL": {"data"},
    "pyarrow": {"data"},
    "pickle": set(),
}

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = {
    # onnxq/passes is a link to passes/, whose files are listed once, as what they are imported as
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / "onnxq").rglob("*.py"))
    if (ROOT / "onnxq" / "passes") not in path.parents
} | {f"onnxq.passes.{path.stem}": path for path in sorted((ROOT / "passes").glob("*.py"))}
COMPILED = {module["name"] for module in PYPROJECT["tool"]["setuptools"]["ext-modules"]}
EACH = pytest.mark.parametrize("module", SHIPPED)


def imports(source: str, package: str) -> set[str]:
    """Every dotted name that a module of the package imports, wherever it does; `a.b` for `from a import b`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found |= {".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return found


def imported(module: str) -> set[str]:
    path = SHIPPED[module]
    return imports(path.read_text(), module.rpartition(".")[0])


def place(name: str) -> str | None:
    """The entry of FLOORS that a dotted name belongs to; None for what is not of onnxq."""
    first, *rest = name.split(".")
    if first != "onnxq":
        return None
    modules = {module.split(".")[1] for module in {*SHIPPED, *COMPILED}}
    return rest[0] if rest and rest[0] in modules - {"__init__"} else "onnxq"  # a public name: from onnxq import Recipe


def too_high(here: str, names: set[str]) -> set[str]:
    """Those of the imported names that lie on a floor above the one of `here`."""
    places = {name: place(name) for name in names}
    return {name for name, found in places.items() if found in FLOOR and FLOOR[found] > FLOOR[here]}


def undocumented(source: str) -> Iterator[str]:
    """The module, and its public functions, classes and their public methods, where they have no docstring."""
    tree = ast.parse(source)
    if not ast.get_docstring(tree):
        yield "the module"
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        prefix, parent = stack.pop()
        for node in ast.iter_child_nodes(parent):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name[0] == "_":
                continue
            said_elsewhere = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
            if not ast.get_docstring(node) and not said_elsewhere & {"overload", "setter"}:
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                stack.append((f"{prefix}{node.name}.", node))


# --- floors and walls --------------------------------------------------------------------------------


@EACH
def test_imports_go_down(module: str) -> None:
    here = place(module)
    assert here in FLOOR, f"{module} is new: add {here!r} to its floor in the table FLOORS of tests/test_house.py"
    assert not too_high(here, imported(module)), f"{module} is on floor {FLOOR[here]}; these are above it"


def test_the_table_lists_each_module_once() -> None:
    assert len(FLOOR) == sum(map(len, FLOORS))


def test_passes_do_not_know_one_another() -> None:
    passes = [module for module in SHIPPED if place(module) == "passes" and module != "onnxq.passes.__init__"]
    assert passes
    known = {module: {name for name in imported(module) if place(name) == "passes"} for module in passes}
    assert not {module: names for module, names in known.items() if names}, "share through Graph or a helper below"


@EACH
def test_walls(module: str) -> None:
    roots = {name.split(".")[0] for name in imported(module)}
    through = {root: WALLS[root] for root in roots & set(WALLS) if place(module) not in WALLS[root]}
    assert not through, f"{module} imports what only these modules may import"
    assert "passes" not in roots, "import onnxq.passes, not passes"


def test_the_linter_knows_the_same_walls() -> None:
    assert set(PYPROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) == set(WALLS)


@EACH
def test_nothing_is_unpickled(module: str) -> None:
    marks = [node for node in ast.walk(ast.parse(SHIPPED[module].read_text())) if isinstance(node, ast.keyword)]
    assert {ast.unparse(mark.value) for mark in marks if mark.arg == "allow_pickle"} <= {"False"}


def test_imports_are_found_wherever_they_hide() -> None:
    code = "import a.b as c\nif TYPE_CHECKING:\n    from d import e\nimportlib.import_module('k')\n"
    code += "def f():\n    from onnxq import g\n    from . import h\n    from ..i import j\n"
    assert imports(code, "onnxq.data") == {"a.b", "d.e", "onnxq.g", "onnxq.data.h", "onnxq.i.j", "k"}


def test_floors_are_compared() -> None:
    names = {"onnxq.errors.DataError", "onnxq.plan.Plan", "onnxq.api", "onnxq", "onnxq.Recipe", "numpy", "onnx.helper"}
    assert too_high("plan", names) == {"onnxq.api", "onnxq", "onnxq.Recipe"}
    assert too_high("errors", names) == names - {"onnxq.errors.DataError", "numpy", "onnx.helper"}
    assert too_high("cli", names) == set()


@EACH
def test_the_domain_of_onnx_runtime_is_written_in_one_place(module: str) -> None:
    texts = {n.value for n in ast.walk(ast.parse(SHIPPED[module].read_text())) if isinstance(n, ast.Constant)}
    assert (operators.CONTRIB in texts) is (module == "onnxq.operators"), "from onnxq.operators import CONTRIB"


# --- import and folders ------------------------------------------------------------------------------


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


def test_importing_onnxq_loads_nothing() -> None:
    done = run_python("import sys, onnxq; print(*sys.modules)")
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.split(".")[0] == "onnxq"} == {"onnxq"}, done.stderr
    assert not loaded & {"numpy", "onnx", "onnxruntime", *WALLS} - {"pickle"}  # pickle: the interpreter's own business
    done = run_python("import sys, onnxq; onnxq.Recipe; print(*sys.modules)")
    assert {"onnxq.recipe"} <= set(done.stdout.split()), done.stderr  # loaded when it is first used


def test_the_packages_shipped_are_the_folders_on_disk() -> None:
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted({module.rpartition(".")[0] for module in SHIPPED})
    assert setuptools["package-dir"] == {"onnxq": "onnxq", "onnxq.passes": "passes"}
    without = [folder for folder in setuptools["packages"] if f"{folder}.__init__" not in SHIPPED]
    assert not without, "these folders have no __init__.py"


def test_the_files_shipped_beside_the_code_are_those_on_disk() -> None:
    said = {
        (ROOT.joinpath(*package.split(".")) / name).relative_to(ROOT)
        for package, names in PYPROJECT["tool"]["setuptools"]["package-data"].items()
        for name in names
    }
    found = {path.relative_to(ROOT) for path in (ROOT / "onnxq").rglob("*") if path.is_file()}
    assert {path for path in found if path.suffix not in {".py", ".pyc", ".so", ".pyd"}} == said


def test_the_passes_are_linked_into_onnxq() -> None:
    link = ROOT / "onnxq" / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")
    assert not [path for path in (ROOT / "passes").iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_the_passes_are_not_a_package_of_their_own() -> None:
    done = run_python("import passes")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "onnxq.passes" in last


# --- what every file owes its reader -----------------------------------------------------------------


@pytest.mark.parametrize("name", onnxq.__all__)
def test_public_names_resolve_and_are_documented(name: str) -> None:
    assert getattr(onnxq, name).__doc__.strip()
    assert name in dir(onnxq)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = onnxq.quantise


@EACH
def test_everything_public_has_a_docstring(module: str) -> None:
    assert not list(undocumented(SHIPPED[module].read_text()))


def test_missing_docstrings_are_found() -> None:
    code = "def f(): ...\ndef _g(): ...\n"
    code += "class C:\n    'c'\n    def m(self): ...\n    @m.setter\n    def n(self, x): ...\n"
    assert sorted(undocumented(code)) == ["C.m", "f", "the module"]


@EACH
def test_files_are_short(module: str) -> None:
    assert len(SHIPPED[module].read_text().splitlines()) <= 400, "split it"
