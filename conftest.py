"""Run the examples of the docs, the README and the docstrings as tests."""

import importlib
import os
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """Examples write files: each page runs in a folder of its own."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("page"))
    yield
    os.chdir(before)


class ModuleDocument(PythonDocStringDocument):
    """Docstring examples see the names of their own module, and torch."""

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text, path)
        parts = Path(path).relative_to(Path(__file__).parent).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        self.namespace["__example_module__"] = name


def module_names(namespace):
    name = namespace.pop("__example_module__", None)
    if name is not None:
        namespace["torch"] = torch
        namespace.update(vars(importlib.import_module(name)))


pages = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    fixtures=["own_folder"],
)
docstrings = Sybil(
    parsers=[DocTestParser()],
    patterns=["proteus/*.py", "proteus/data/*.py", "proteus/evaluation/*.py"],
    document_types={".py": ModuleDocument},
    setup=module_names,
)
pytest_collect_file = (pages + docstrings).pytest()
