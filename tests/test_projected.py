import pytest
import torch
from safetensors.torch import load_file, save_file

import proteus
from proteus.features import ShapeError
from proteus.models.frozen import as_extractor
from proteus.projected import Projected, load_projected, save_projected

ARCHITECTURE = "vit_tiny_patch16_224"


def model_of(**options):
    student = proteus.Student(ARCHITECTURE, image_size=32)
    loss = proteus.ProteusLoss(192, 24, **options)
    for module in loss.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight)
    return Projected(student, loss)


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32)


def test_it_is_the_student_then_the_heads(images):
    model = model_of().eval()
    plain, found = model.student(images), model(images)
    torch.testing.assert_close(found.cls, model.loss.token_head(plain.cls))
    torch.testing.assert_close(found.patches, model.loss.feature_head(plain.patches))
    assert (found.grid, model.embed_dim) == ((2, 2), 24)


def test_saved_and_read_it_gives_the_same_maps_included(tmp_path, images):
    model = model_of(targets="phi_s", token_distance="queue", queue_size=4)
    teacher = proteus.Features(torch.randn(2, 24) + 3, torch.randn(2, 4, 24) * 5, (2, 2))
    model.loss(model.student(images), teacher, model.student(images), torch.zeros(2, 4).bool())
    model.eval()
    again = load_projected(save_projected(model, tmp_path))
    assert again.image_size == (32, 32)
    assert torch.equal(again(images).cls, model(images).cls)
    assert torch.equal(again(images).patches, model(images).patches)
    assert proteus.load_pretrained(tmp_path)(images).shape == (2, 192)  # the student alone


def test_evaluations_take_it_at_its_own_size(images):
    model = model_of().eval()
    extractor = as_extractor(model)
    assert (extractor.image_size, extractor.embed_dim) == ((32, 32), 24)
    torch.testing.assert_close(extractor(images).cls, model(images).cls.detach())


def test_what_does_not_fit_is_named(tmp_path):
    student = proteus.Student(ARCHITECTURE, image_size=32)
    with pytest.raises(ValueError, match="feature=0"):
        Projected(student, proteus.ProteusLoss(192, 24, feature=0))
    with pytest.raises(ShapeError, match=r"Got width 8; expected 192"):
        Projected(student, proteus.ProteusLoss(8, 24))
    save_projected(Projected(student, proteus.ProteusLoss(192, 24)), tmp_path)
    path = tmp_path / "heads.safetensors"
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="does not say what its heads are"):
        load_projected(tmp_path)
