"""The contract: public names, and what no module may do."""

import ast
import re
import sys
from pathlib import Path

import pytest

import proteus

PACKAGE = Path(proteus.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def names_of(node):
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
        yield node.module.split(".")[0]


def all_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        yield from names_of(node)


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
def test_timm_is_met_in_few_modules_only(path):
    if module_of(path) not in ("models", "weights", "hub", "exports", "data", "integrations"):
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_transformers_loads_when_it_is_needed_and_not_before(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert "transformers" not in set(names_of(node))
