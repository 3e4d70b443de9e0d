import copy

import pytest
import torch
from timm.layers import SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

import proteus
from conftest import vit
from proteus.features import ShapeError
from proteus.inheritance import select_weights

# Widths are multiples of 3 heads.
PAIRS = [(24, 48), (24, 36), (36, 48), (24, 24), (12, 60)]


def eva(dim=24, depth=2, **options):
    return Eva(
        img_size=32, patch_size=8, embed_dim=dim, depth=depth, num_heads=3, num_classes=0,
        use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=2, **options,
    )  # fmt: skip


def randomize(model):
    with torch.no_grad():
        for value in model.state_dict().values():
            value.normal_()
    return model


def numbered(model):
    """Every tensor holds its own flat element numbers, so that a choice can be read off."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.arange(value.numel()).view(value.shape))
    return model


@pytest.mark.parametrize("make", [vit, eva])
@pytest.mark.parametrize("options", [{}, {"init_values": 1.0}, {"qkv_bias": False}])
def test_equal_sizes_give_equal_models(make, options):
    if make is eva and "init_values" in options:
        options = {"init_values": 0.1}
    student, teacher = make(24, **options), randomize(make(24, **options))
    inherited = select_weights(student, teacher)
    assert inherited.selected == ()
    assert set(inherited.copied) == set(student.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(student.eval()(images), teacher.eval()(images))


@pytest.mark.parametrize("heads", ["elements", "whole"])
@pytest.mark.parametrize(("small", "large"), [(24, 24), (24, 48)])
def test_a_shallow_student_gets_the_first_blocks(small, large, heads):
    student = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=small, depth=2, num_heads=small // 8, num_classes=0
    )
    teacher = randomize(
        VisionTransformer(
            img_size=32, patch_size=8, embed_dim=large, depth=5, num_heads=large // 8,
            num_classes=0,
        )
    )  # fmt: skip
    assert select_weights(student, teacher, heads=heads).layers == (2, 5)
    if small == large:
        teacher.blocks = teacher.blocks[:2]
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(student.eval()(images), teacher.eval()(images))


def test_where_sizes_divide_it_is_every_nth_element_of_every_tensor():
    # What the published code does: index_select with arange(m) * (n // m) in each dimension.
    student, teacher = vit(24, init_values=1.0), randomize(vit(72, depth=3, init_values=1.0))
    select_weights(student, teacher)
    for name, ours in student.state_dict().items():
        theirs = teacher.state_dict()[name]
        for dim, (m, n) in enumerate(zip(ours.shape, theirs.shape, strict=True)):
            theirs = theirs.index_select(dim, torch.arange(m) * (n // m))
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_elements_are_different_ones_in_order_and_evenly_spaced(small, large):
    student, teacher = vit(small), numbered(vit(large))
    select_weights(student, teacher)
    chosen = student.state_dict()["norm.weight"].long()
    gaps = chosen.diff()
    assert chosen[0] == 0
    assert chosen[-1] < large
    assert set(gaps.tolist()) <= {large // small, -(-large // small)}


@pytest.mark.parametrize("heads", ["elements", "whole"])
@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_query_key_value_and_output_are_chosen_alike(small, large, heads):
    width = 12
    student, teacher = (
        VisionTransformer(
            img_size=32, patch_size=8, embed_dim=dim, depth=1, num_heads=dim // width, num_classes=0
        )
        for dim in (small, large)
    )
    numbered(teacher)
    select_weights(student, teacher, heads=heads)
    rows = student.state_dict()["blocks.0.attn.qkv.bias"].long().view(3, small)
    assert torch.equal(rows[0], rows[1] - large)
    assert torch.equal(rows[0], rows[2] - 2 * large)
    read = student.state_dict()["blocks.0.attn.proj.weight"].long() % large
    assert torch.equal(read, rows[0].expand(small, small))
    if heads == "whole":
        for head in rows[0].view(-1, width):
            assert torch.equal(head, head[0] + torch.arange(width))
            assert head[0] % width == 0


def test_a_mix_of_whole_heads_computes_what_those_heads_compute():
    """Where the channels that are left out are zero, whole heads are the teacher's own."""
    student, teacher = (
        VisionTransformer(
            img_size=32, patch_size=8, embed_dim=dim, depth=1, num_heads=dim // 8, num_classes=0
        )
        for dim in (16, 32)
    )
    randomize(teacher)
    attention = teacher.blocks[0].attn
    with torch.no_grad():
        attention.qkv.weight[:, 1::2] = 0  # channels 1, 3, … are not read
    select_weights(student, teacher, heads="whole")
    tokens = torch.randn(2, 5, 32)
    rows = attention.qkv(tokens).view(2, 5, 3, 4, 8)[:, :, :, ::2].reshape(2, 5, 48)
    torch.testing.assert_close(student.blocks[0].attn.qkv(tokens[..., ::2]), rows)


def test_gate_and_value_of_a_gated_layer_are_chosen_alike():
    student, teacher = (vit(dim, mlp_layer=SwiGLUPacked, mlp_ratio=4.0) for dim in (24, 36))
    numbered(teacher)
    select_weights(student, teacher)
    gate, value = student.state_dict()["blocks.0.mlp.fc1.bias"].long().chunk(2)
    wide = teacher.blocks[0].mlp.fc2.in_features
    assert torch.equal(gate, value - wide)
    read = student.state_dict()["blocks.0.mlp.fc2.weight"].long() % wide
    assert torch.equal(read[0], gate)


def test_a_gated_layer_is_no_source_for_a_plain_one():
    teacher = vit(48, mlp_layer=SwiGLUPacked, mlp_ratio=8.0)
    with pytest.raises(
        ShapeError, match=r"blocks\.0\.mlp\.fc1\.weight does not fit.*kind of layer"
    ):
        select_weights(vit(24), teacher)


def test_the_teacher_stays_as_it_was_and_shares_no_memory(teacher, student):
    before = copy.deepcopy(teacher.state_dict())
    select_weights(student, teacher)
    with torch.no_grad():
        for value in student.parameters():
            value.zero_()
    after = teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in student.backbone.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_wrappers_and_plain_models_are_taken_alike(teacher, student):
    other = copy.deepcopy(student)
    select_weights(student, teacher)
    select_weights(other.backbone, teacher.backbone)
    assert all(
        torch.equal(a, b)
        for a, b in zip(student.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_the_paper_s_student_starts_from_its_teacher():
    teacher = proteus.Teacher("dinov2_vits14", pretrained=False, image_size=56)
    student = proteus.Student("vit_tiny_patch14", image_size=56)
    inherited = select_weights(student, teacher)
    assert inherited.layers == (12, 12)
    assert len(inherited.selected) == len(student.backbone.state_dict())
    assert torch.equal(student.backbone.pos_embed, teacher.backbone.pos_embed[..., ::2])


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (vit(48), vit(24), r"cls_token does not fit. Got \(1, 1, 24\) .* \(1, 1, 48\)"),
        (vit(24, depth=3), vit(48), r"no blocks\.2\.norm1\.weight"),
        (vit(24, init_values=1.0), vit(48), r"no blocks\.0\.ls1\.gamma"),
        (vit(24), vit(48, init_values=1.0), r"the student lacks. Got blocks\.0\.ls1\.gamma"),
        (vit(24), vit(48, reg_tokens=2), "the student lacks. Got reg_token"),
        (vit(24, reg_tokens=1), vit(48, reg_tokens=2), "reg_token does not fit"),
        (vit(24, size=64), vit(48), "pos_embed does not fit.*one image size"),
        (vit(24, size=16, patch=4), vit(48), "patch_embed.proj.weight does not fit"),
        (vit(24), eva(48), "VisionTransformer and Eva"),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), "Linear and Linear"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_is_changed(student, teacher, message):
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match=message):
        select_weights(student, teacher)
    after = student.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_heads_of_two_widths_cannot_stay_whole():
    with pytest.raises(ShapeError, match=r"Got 8 channels .* and 16"):
        select_weights(vit(24), vit(48), heads="whole")
    with pytest.raises(ValueError, match="heads='half'"):
        select_weights(vit(24), vit(48), heads="half")
