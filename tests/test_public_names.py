"""The contract: public names, and which module may import which."""

import ast
import re
import sys
from pathlib import Path

import pytest

import proteus

PACKAGE = Path(proteus.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# A module imports only from lines below its own.
LAYERS = [
    {"cli"},
    {"evaluate"},
    {"demo", "release"},
    {"recipes"},
    {"training"},
    {"watch", "trackers", "run_report"},
    {"checkpoint", "hub", "exports", "evaluation"},
    {"curves"},
    {"visualize", "report"},
    {"saving"},
    {"logits"},
    {"card", "distiller", "inheritance"},
    {"teacher", "student"},
    {"backbone", "probes"},
    {"weights", "reader"},
    {"heads", "losses", "masking", "catalog", "config", "pretrained", "data"},
    {"positions"},
    {"features", "files", "ranges", "text", "version", "words", "world"},
]
# heads and losses are siblings, and a loss owns its heads; hub writes what a student is.
ALLOWED = {("losses", "heads"), ("distiller", "training")}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def module_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def own_imports(path):
    """Names of our modules that a file imports, late imports included, typing-only ones not."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in typing_only:
            if node.level < depth:
                continue  # inside a package of its own
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (name.split(".")[0] for name in names)


def all_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_the_public_names_are_the_contract_s():
    assert sorted(proteus.__all__) == sorted(
        [
            "Distiller", "Features", "Losses", "MaskGenerator", "ProjectionHead", "ProteusLoss",
            "Student", "Teacher", "list_pretrained", "load_pretrained", "push_to_hub",
            "save_pretrained",
        ]
    )  # fmt: skip
    for name in proteus.__all__:
        value = getattr(proteus, name)
        assert value.__doc__
        assert value.__module__.startswith("proteus.")


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Techer"):
        _ = proteus.Techer


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_layers_below_it(path):
    name = module_of(path)
    if name in ("__init__", "__main__"):
        return
    for other in set(own_imports(path)) - {"version"}:
        assert LEVEL[name] < LEVEL[other] or (name, other) in ALLOWED, f"{name} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_timm_is_met_in_few_modules_only(path):
    if module_of(path) not in ("backbone", "weights", "saving", "card", "exports", "data"):
        assert "timm" not in set(all_imports(path))


def test_the_extra_eval_installs_what_evaluation_imports():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]

    def names(lines):
        return {re.split(r"[^\w-]", line)[0] for line in lines}

    always = names(project["dependencies"]) | sys.stdlib_module_names | {"PIL"}
    found = {
        name
        for folder in ("evaluation", "visualize.py", "report.py")
        for path in FILES
        if path.relative_to(PACKAGE).parts[0] == folder
        for name in all_imports(path)
    }
    extras = {key: names(lines) for key, lines in project["optional-dependencies"].items()}
    # torchvision reads the lists of two sets with SciPy.
    assert extras["eval"] == (found - always) | {"scipy"} == {"transformers", "scipy"}
    assert "transformers" not in extras["export"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_attributes_are_declared_and_not_probed(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "hasattr"
            assert not (node.func.id == "getattr" and len(node.args) > 2)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
