import ast
from pathlib import Path
from typing import Protocol, runtime_checkable

import pytest
import torch

import proteus
from proteus.features import FeatureExtractor
from proteus.hub.save import HasStudent
from proteus.training.objective import Objective
from proteus.traits import Trait

PACKAGE = Path(proteus.__file__).parent


@runtime_checkable
class HasParts(Trait, Protocol):
    part: torch.nn.Module
    weight: torch.nn.Parameter
    table: torch.Tensor | None

    def run(self) -> None: ...


class Whole(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.part = torch.nn.Identity()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("table", None)

    def run(self):
        pass


def test_a_module_has_its_parts_parameters_and_buffers_in_every_python():
    assert isinstance(Whole(), HasParts)


@pytest.mark.parametrize("name", ["part", "weight", "table"])
def test_each_of_them_is_needed(name):
    model = Whole()
    delattr(model, name)
    assert not isinstance(model, HasParts)


def test_a_method_that_is_none_is_none():
    model = Whole()
    model.run = None
    assert not isinstance(model, HasParts)


def test_what_a_wrapper_passes_on_counts():
    class Wrapper:
        def __init__(self, model):
            self._model = model

        def __getattr__(self, name):
            return getattr(self._model, name)

    assert isinstance(Wrapper(Whole()), HasParts)


def test_a_class_of_its_own_below_a_trait_is_known_by_name_alone():
    class Named(HasParts):
        pass

    assert isinstance(Named(), HasParts)
    assert not isinstance(Whole(), Named)


def test_the_objects_of_the_library_have_the_traits_it_tells(distiller):
    assert isinstance(distiller, Objective)
    assert isinstance(distiller, HasStudent)
    assert isinstance(distiller.teacher, FeatureExtractor)
    assert not isinstance(distiller.student.backbone, Objective | HasStudent)


def test_every_protocol_that_isinstance_may_ask_is_a_trait():
    """One that is not is blind to the parts of a module from Python 3.12 on."""
    blind = [
        f"{path.relative_to(PACKAGE)}: {node.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any("runtime_checkable" in ast.unparse(one) for one in node.decorator_list)
        and {ast.unparse(base) for base in node.bases} == {"Protocol"}
    ]
    assert blind == []
