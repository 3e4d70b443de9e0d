import copy

import pytest
import timm
import torch
from torch import nn
from torchvision.transforms.functional import to_pil_image

import proteus
from conftest import vit
from proteus.evaluation import as_extractor
from proteus.evaluation.agreement import agreement
from proteus.models.fused import fuse

# Model, image size, layers, and what comes out: grid and width of the patches.
TINY = {
    "resnet": ("test_resnet", 64, -2, (4, 4), 192),
    "convnext": ("test_convnext", 64, (-1, -2), (4, 4), 64 + 48),
    "efficientnet": ("test_efficientnet", 64, (-3, -1), (8, 8), 32 + 256),
    "mobilenet": ("mobilenetv3_small_050", 64, (-2, -3), (8, 8), 24 + 16),
    "vit": ("test_vit", 160, (1, -1), (10, 10), 64 + 64),
    "vit of averages": ("test_vit2", 160, (1, -1), (10, 10), 64 + 64),
}
HEAVY = {
    "resnet18": ("resnet18", 64, (-2, -1), (4, 4), 256 + 512),
    "convnext_atto": ("convnext_atto", 64, -2, (4, 4), 160),
    "vit_tiny": ("vit_tiny_patch16_224", 64, (5, -1), (4, 4), 192 + 192),
    "swin": ("swin_tiny_patch4_window7_224", 224, -2, (14, 14), 384),
    "fastvit": ("fastvit_t8", 64, (-2, -1), (4, 4), 192 + 768),
    "hiera": ("hiera_tiny_224", 224, -2, (14, 14), 384),
}
MODELS = [*TINY, *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVY)]


def student_of(name):
    model, size, layers, _, _ = {**TINY, **HEAVY}[name]
    return proteus.Student(model, image_size=size, layers=layers).eval()


def images_for(model, count=2):
    return torch.rand(count, 3, *model.image_size)


@pytest.mark.parametrize("name", MODELS)
def test_patches_are_the_layers_and_the_vector_is_the_models_own(name):
    *_, grid, width = {**TINY, **HEAVY}[name]
    student = student_of(name)
    images = images_for(student)
    calls = []
    for module in student.backbone.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, args, output: calls.append(module))
    with torch.no_grad():
        found = student(images)
        once = len(calls)
        whole = proteus.models.read.reader_for(student.backbone)(
            student.backbone, student.inputs(images)
        )
    # One forward: at most the final norm more, of each layer, and what heads do with each patch.
    assert once <= len(calls) - once + len(student.layers)
    assert (student.grid, student.patch_dim) == (grid, width) == (found.grid, width)
    assert found.patches.shape == (2, grid[0] * grid[1], width)
    assert torch.equal(found.cls, whole.cls)
    assert torch.equal(found.cls, student.backbone(student.inputs(images)))
    one_by_one = as_extractor(student.backbone, normalize=False).layers
    layers = {number: one_by_one(student.inputs(images), [number])[0] for number in student.layers}
    expected = fuse(whole.cls, [layers[number] for number in student.layers])
    torch.testing.assert_close(found.patches, expected.patches, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_distilled_and_every_parameter_gets_a_gradient(name):
    student = student_of(name)
    size, rows = student.image_size[0], student.grid[0]
    teacher = proteus.Teacher(vit(36, size=size, patch=size // rows), image_size=size)
    weight = 1.0 if student.mask_token is not None else 0.0
    loss = proteus.ProteusLoss(student.width, teacher.width, patch=weight)
    distiller = proteus.Distiller(teacher, student, loss)
    distiller(images_for(student)).total.backward()
    for key, parameter in distiller.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, key


def test_the_last_layer_is_the_output():
    for name in ("test_resnet", "test_efficientnet", "test_vit", "test_vit2", "test_convnext"):
        torch.manual_seed(0)
        plain = proteus.Teacher(name, pretrained=False)
        chosen = proteus.Teacher(plain.backbone, layers=-1)
        images = images_for(plain)
        torch.testing.assert_close(chosen(images), plain(images), rtol=0, atol=0)


def test_the_grid_is_the_finest_and_coarser_layers_are_brought_there_by_halves():
    fine = proteus.Features(torch.zeros(1, 2), torch.arange(16.0).view(1, 16, 1), (4, 4))
    coarse = proteus.Features(torch.zeros(1, 2), torch.tensor([[[0.0], [4], [8], [12]]]), (2, 2))
    fused = fuse(torch.ones(1, 5), [coarse, fine])
    assert fused.grid == (4, 4)
    assert torch.equal(fused.patches[..., 1:], fine.patches)
    rows = fused.patches[0, :, 0].view(4, 4)
    assert rows[0].tolist() == [0, 1, 3, 4]  # a quarter and three quarters between 0 and 4
    assert rows[:, 0].tolist() == [0, 2, 6, 8]


def test_layers_come_in_the_order_given():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0)
    one = proteus.Teacher(model, image_size=64, layers=(2, -2))
    other = proteus.Teacher(model, image_size=64, layers=(-2, 2))
    images = images_for(one)
    assert (one.layers, other.layers) == ((2, 3), (3, 2))
    swapped = other(images).patches.split([192, 48], -1)
    assert torch.equal(one(images).patches, torch.cat(swapped[::-1], -1))


@pytest.mark.parametrize("layers", [5, -6, (), (1, 1), (1, -4)])
def test_layers_that_are_none_are_refused(layers):
    with pytest.raises(ValueError, match=r"Student: layers the model does not have.*0 … 4, or -5"):
        proteus.Student("test_resnet", image_size=64, layers=layers)


def test_a_model_that_tells_no_layers_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"Teacher: patches cannot come.*Got 'Conv2d', which does"):
        proteus.Teacher(nn.Conv2d(3, 8, 4, stride=4), image_size=32, layers=-1)


@pytest.mark.slow
def test_a_model_without_patches_is_refused():
    with pytest.raises(ValueError, match="which gives no patches"):
        proteus.Teacher("crossvit_tiny_240", pretrained=False, layers=-1)


def test_a_copy_reads_its_own_model():
    student = student_of("resnet")
    other = copy.deepcopy(student)
    with torch.no_grad():
        next(other.backbone.parameters()).zero_()
    images = images_for(student)
    assert not torch.equal(student(images).patches, other(images).patches)


def test_patches_are_hidden_beside_chosen_layers():
    student = proteus.Student(vit(24), image_size=32, layers=(0, -1)).eval()
    nn.init.normal_(student.mask_token)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 5] = True
    images = images_for(student)
    other = images.clone()
    other[:, :, 8:16, 8:16] = 0
    with torch.no_grad():
        assert torch.equal(student(images, hidden).patches, student(other, hidden).patches)
        assert not torch.equal(student(images, hidden).patches, student(images).patches)


def test_what_no_gradient_reaches_rests():
    teacher = proteus.Teacher(vit(36, size=64, patch=16), image_size=64)
    student = proteus.Student("test_resnet", image_size=64, layers=-2)
    loss = proteus.ProteusLoss(student.width, teacher.width, patch=0)
    proteus.Distiller(teacher, student, loss)
    assert student.backbone.layer4[0].conv1.weight.requires_grad
    student.learn_from(cls=False, patches=True, hidden=False)
    assert not student.backbone.layer4[0].conv1.weight.requires_grad
    assert student.backbone.layer3[0].conv1.weight.requires_grad


def test_checkpointed_activations_give_the_same_gradients():
    student = student_of("vit")
    images, gradients = images_for(student), []
    for enabled in (False, True):
        student.backbone.set_grad_checkpointing(enabled)
        student.zero_grad()
        student.train()(images).patches.square().mean().backward()
        gradients.append(student.backbone.blocks[0].mlp.fc1.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_compiled_in_one_graph_it_is_the_same(name):
    student = student_of(name)
    images = images_for(student)
    eager = student.features(student.inputs(images))
    whole = torch.compile(student.features, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(student.inputs(images)), eager)


def test_an_extractor_returns_what_the_model_returns():
    student = student_of("resnet")
    images = images_for(student)
    extractor = as_extractor(student)
    with torch.no_grad():
        torch.testing.assert_close(extractor(images), student(images), rtol=0, atol=0)
    assert as_extractor(extractor)(images).grid == (4, 4)
    assert as_extractor(student, image_size=96)(images_for(student)).grid == (4, 4)
    assert extractor.patch_size == (16, 16)
    assert extractor.num_layers == 5
    assert extractor.layers(images, 1)[0].grid == (2, 2)
    # Kept features are of these layers only.
    assert extractor.fingerprint() != as_extractor(student.backbone).fingerprint()
    plain = proteus.Student(student.backbone, image_size=64)
    assert extractor.fingerprint() != as_extractor(plain).fingerprint()


def test_agreement_compares_the_chosen_patches_where_widths_are_equal():
    student = proteus.Student("test_resnet", image_size=64, layers=-2).eval()
    teacher = proteus.Teacher(copy.deepcopy(student.backbone), image_size=64, layers=-2)
    images = [(to_pil_image(image), 0) for image in images_for(student, 3)]
    scores = agreement(student, teacher, images).distances
    assert scores["patch_cosine"] == pytest.approx(1)
    other = proteus.Teacher(teacher.backbone, image_size=64, layers=(-2, -1))
    assert set(agreement(student, other, images).distances) == {"cls_cosine", "cls_mse"}
    loss = proteus.ProteusLoss(student.width, other.width, patch=0)
    assert "patch_cosine" in agreement(student, other, images, loss=loss).distances
