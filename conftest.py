"""Run the examples of the docs, the README and the docstrings as tests."""

import importlib
import os
import socket
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parent

# huggingface_hub reads this once, when it is imported: the whole suite talks to a Hub on loopback
# (tests/hub_server.py) or to nothing. pytest may import this file twice; the port is chosen once,
# for each of the processes that share the tests.
_HUB = f"PROTEUS_TEST_HUB_{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
if _HUB not in os.environ:
    with socket.socket() as _free:
        _free.bind(("127.0.0.1", 0))
        os.environ[_HUB] = f"http://127.0.0.1:{_free.getsockname()[1]}"
os.environ["HF_ENDPOINT"] = os.environ[_HUB]


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
        parts = Path(path).relative_to(ROOT).with_suffix("").parts
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
    patterns=sorted(
        {
            f"{path.parent.relative_to(ROOT).as_posix()}/*.py"
            for path in ROOT.glob("proteus/**/*.py")
        }
    ),
    document_types={".py": ModuleDocument},
    setup=module_names,
)
pytest_collect_file = (pages + docstrings).pytest()
