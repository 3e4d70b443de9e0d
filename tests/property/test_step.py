"""Sending only the masked images through the masked view changes nothing but the time."""

import pytest
import torch
from oracles import two_passes

from conftest import vit
from proteus import Distiller, MaskGenerator, ProteusLoss, Student, Teacher

FAMILIES = {
    "plain": {},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "class-token-free": {"class_token": False, "global_pool": "avg"},
    "layer scale": {"init_values": 1.0},
}


def build(family="plain", **mask_options):
    teacher = Teacher(vit(36, depth=1), image_size=32)
    student = Student(vit(24, depth=2, **FAMILIES[family]), image_size=32)
    loss = ProteusLoss(24, 36, token=0.7, feature=1.3, patch=2.1)
    distiller = Distiller(teacher, student, loss, MaskGenerator((4, 4), **mask_options))
    with torch.no_grad():  # a mask token of zeros would hide mistakes
        student.mask_token.normal_()
    return distiller.double()


def compare(distiller, images, hidden):
    runs = []
    for step in (distiller, lambda i, h: two_passes(distiller, i, h)):
        distiller.zero_grad()
        losses = step(images, hidden)
        losses.total.backward()
        gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for p in distiller.parameters()
        ]
        runs.append((losses, gradients))
    (ours, our_gradients), (theirs, their_gradients) = runs
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("strategy", ["random", "block"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_masked_images_only_equals_two_full_passes(probability, strategy, shuffle):
    distiller = build(probability=probability, strategy=strategy, shuffle=shuffle)
    images = torch.rand(5, 3, 32, 32, dtype=torch.float64)
    compare(distiller, images, distiller.masks.masks(5))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_it_does_so_for_every_family_and_batch_size(family, batch):
    distiller = build(family, ratio=(0.1, 0.9))
    compare(distiller, torch.rand(batch, 3, 32, 32).double(), torch.rand(batch, 16) < 0.4)


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_masks_drawn_inside_the_step_are_the_generator_s(shuffle):
    distiller = build(shuffle=shuffle)
    images = torch.rand(6, 3, 32, 32, dtype=torch.float64)
    torch.manual_seed(3)
    hidden = distiller.masks.masks(6)
    torch.manual_seed(3)
    drawn = distiller(images)
    for a, b in zip(drawn, two_passes(distiller, images, hidden), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_order_of_the_images_does_not_matter():
    distiller, images = build(), torch.rand(4, 3, 32, 32, dtype=torch.float64)
    hidden, order = torch.rand(4, 16) < 0.5, torch.tensor([2, 0, 3, 1])
    for a, b in zip(
        distiller(images, hidden), distiller(images[order], hidden[order]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_masked_view_runs_on_masked_images_only():
    distiller, seen = build(), []
    distiller.student.backbone.patch_embed.register_forward_hook(
        lambda module, args, output: seen.append(output.shape[0])
    )
    distiller(torch.rand(8, 3, 32, 32, dtype=torch.float64))
    assert seen == [12]  # eight whole images and four masked ones, in one call
