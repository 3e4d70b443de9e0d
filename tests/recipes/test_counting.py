"""What a step computes, counted on the real modules."""

import pytest
import torch

import proteus
from proteus.recipes import cost, recipe
from proteus.recipes.counting import count
from proteus.recipes.launch import objective_of
from proteus.recipes.pair import open_pair


def small(**loss):
    teacher = proteus.Teacher("vit_tiny_patch16_224", pretrained=False, image_size=32)
    student = proteus.Student("vit_tiny_patch16_224", image_size=32)
    weights = proteus.ProteusLoss(student.width, teacher.width, **loss) if loss else None
    return proteus.Distiller(teacher, student, weights)


@pytest.mark.parametrize("name", ["s14-dinov2-b14", "table11-ti16-labels"])
def test_the_formula_of_the_paper_s_runs_is_what_their_modules_do(name):
    found = recipe(name)
    with torch.device("meta"):
        objective = objective_of(found, *open_pair(found.science.model, weights=False))
    counted = count(objective)
    # The formula has no heads, and takes three times the forward for the first layer, too.
    assert counted.flops / 2e9 == pytest.approx(cost(found).gmac, rel=0.02)


def test_the_masked_view_counts_for_the_images_that_have_one():
    whole = count(small(patch=0.0)).flops
    half = count(small()).flops
    objective = small()
    objective.masks = proteus.MaskGenerator(objective.grid, probability=1.0)
    student = count(objective).flops - half
    # Half a view of the student: its heads are beside it.
    assert half - whole == pytest.approx(student, rel=0.1)


def test_a_cnn_is_counted_and_nothing_of_it_changes():
    teacher = proteus.Teacher("vit_tiny_patch16_224", pretrained=False, image_size=64)
    student = proteus.Student("resnet10t", image_size=64)
    objective = proteus.Distiller(teacher, student).eval()
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    state = torch.get_rng_state()
    found = count(objective)
    assert found.teacher_flops < found.flops
    assert found.trained_parameters == sum(p.numel() for p in objective.trainable_parameters())
    assert found.kept_bytes > 0
    assert not objective.training
    assert not any(p.is_meta for p in objective.parameters())
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in objective.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_counted_on_meta_or_on_the_cpu_is_the_same():
    with torch.device("meta"):
        light = small()
    assert count(light) == count(small())


@pytest.mark.parametrize(
    "loss",
    [
        {"targets": "phi_s"},
        {"targets": "standardized", "token_distance": "queue"},
        {"targets": "angle", "head": "identity"},
    ],
)
def test_targets_that_are_mapped_cost_about_what_plain_ones_do(loss):
    objective = small(**loss)
    found = count(objective)
    assert objective.loss.targets == loss["targets"]
    assert found.flops == pytest.approx(count(small()).flops, rel=0.1)
    assert found.trained_parameters == sum(p.numel() for p in objective.trainable_parameters())


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t"])
def test_a_cnn_s_backward_pass_is_about_twice_its_forward(name):
    # torch's own counter takes hundreds of times too much for a depthwise convolution.
    teacher = proteus.Teacher(name, pretrained=False, image_size=64)
    student = proteus.Student(name, image_size=64)
    loss = proteus.ProteusLoss(student.width, teacher.width, feature=0, patch=0)
    found = count(proteus.Distiller(teacher, student, loss))
    assert found.flops / found.teacher_flops == pytest.approx(4, rel=0.1)
