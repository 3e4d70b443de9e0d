import pytest
import torch
from torch import nn

import proteus
from conftest import vit


class Wrapper(nn.Module):
    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher


def test_it_stays_in_eval_whatever_is_called_around_it():
    teacher = proteus.Teacher(vit(24, proj_drop_rate=0.5, drop_path_rate=0.5), image_size=32)
    images = torch.rand(2, 3, 32, 32)
    first = teacher(images).cls
    Wrapper(teacher).train()
    teacher.train(True)
    assert not any(module.training for module in teacher.modules())
    assert torch.equal(teacher(images).cls, first)


def test_it_builds_no_graph_and_its_output_can_be_saved_for_backward(teacher, images):
    features = teacher(images)
    assert not features.cls.requires_grad
    weight = torch.ones(36, requires_grad=True)
    ((weight * features.cls) ** 2).mean().backward()  # inference tensors would refuse
    assert weight.grad is not None


def test_no_parameter_requires_a_gradient(teacher):
    assert not any(p.requires_grad for p in teacher.parameters())


def test_the_state_of_batch_norm_does_not_move():
    module = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8))
    teacher = proteus.Teacher(module, image_size=32)
    teacher.train()
    teacher(torch.rand(4, 3, 32, 32))
    assert int(module[1].num_batches_tracked) == 0


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(ValueError, match=r"dinov2_vitb41.*Did you mean dinov2_vitb14 or"):
        proteus.Teacher("dinov2_vitb41")


def test_an_unknown_tag_is_not_replaced_by_another():
    with pytest.raises(ValueError, match=r"vit_small_patch14_dinov2\.nope.*Did you mean"):
        proteus.Teacher("vit_small_patch14_dinov2.nope")


def test_a_name_without_published_weights_says_so():
    with pytest.raises(ValueError, match=r"synclr_vitb16.*checkpoint="):
        proteus.Teacher("synclr_vitb16")


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        proteus.Teacher(f"local-dir:{tmp_path}")


def test_the_image_size_must_be_whole_patches():
    with pytest.raises(ValueError, match=r"50x50.*14x14.*42x42 or 56x56"):
        proteus.Teacher("vit_small_patch14_dinov2", pretrained=False, image_size=50)


def test_a_checkpoint_fills_a_named_model_exactly(tmp_path):
    from safetensors.torch import save_file

    model = proteus.Student("vit_tiny_patch16_224", image_size=32).backbone
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    source = proteus.Student("vit_tiny_patch16_224", image_size=224).backbone
    save_file(source.state_dict(), tmp_path / "big.safetensors")
    teacher = proteus.Teacher("vit_tiny_patch16_224", checkpoint=tmp_path / "big.safetensors")
    assert torch.equal(teacher.backbone.norm.weight, source.norm.weight)
    with pytest.raises(ValueError, match="pos_embed"):
        proteus.Teacher("vit_tiny_patch16_224", checkpoint=tmp_path / "w.safetensors")


def test_a_dinov2_checkpoint_fills_a_dinov2_name_at_any_size(tmp_path):
    import timm
    from safetensors.torch import save_file

    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=56)
    weights = {**model.state_dict(), "mask_token": torch.zeros(1, 384)}
    save_file(weights, tmp_path / "dinov2.safetensors")
    teacher = proteus.Teacher(
        "dinov2_vits14", checkpoint=tmp_path / "dinov2.safetensors", image_size=70
    )
    expected = proteus.weights.from_dinov2(weights, image_size=70)
    assert torch.equal(teacher.backbone.pos_embed, expected.pos_embed)
    with pytest.raises(ValueError, match="another model"):
        proteus.Teacher("dinov2_vitb14", checkpoint=tmp_path / "dinov2.safetensors")


def test_printing_it_says_what_it_is(teacher):
    assert "embed_dim=36, grid=(4, 4)" in repr(teacher)


class TestShared:
    @pytest.fixture
    def counted(self, teacher):
        """How many images each pass had."""
        counts = []
        teacher.register_forward_hook(lambda _, args, __: counts.append(len(args[0])))
        return counts

    @pytest.mark.parametrize("compiled", [False, True])
    def test_the_same_images_go_through_once(self, teacher, counted, images, compiled):
        if compiled:
            teacher.compile(backend="eager")
        alone = teacher(images)
        counted.clear()
        with teacher.shared():
            first, *others = [teacher(part) for part in (images, images.view_as(images), images)]
        assert counted == [len(images)]
        assert all(other is first for other in others)
        assert torch.equal(first.cls, alone.cls) and torch.equal(first.patches, alone.patches)

    def test_parts_of_a_batch_are_told_apart_in_any_order(self, teacher, counted, images):
        expected = [teacher(images[n::2]).cls for n in range(2)]
        counted.clear()
        with teacher.shared():
            found = {n: teacher(images[n::2]).cls for n in (0, 1, 1, 0)}
            half = teacher(images[: len(images) // 2])  # begins where the first part begins
        assert counted == [len(images) // 2] * 3
        assert all(torch.equal(found[n], expected[n]) for n in range(2))
        assert torch.equal(half.cls, teacher(images[: len(images) // 2]).cls)

    def test_images_that_were_written_into_are_others(self, teacher, counted, images):
        with teacher.shared():
            before = teacher(images).cls
            images.mul_(0.5)
            after = teacher(images).cls
        assert len(counted) == 2
        assert not torch.equal(before, after)

    def test_memory_is_not_given_to_other_images_meanwhile(self, teacher, counted):
        with teacher.shared():
            for number in range(4):
                teacher(torch.full((2, 3, 32, 32), number / 4))
        assert len(counted) == 4

    def test_each_precision_has_its_own(self, teacher, counted, images):
        with teacher.shared():
            whole = teacher(images).cls
            with torch.autocast("cpu", torch.bfloat16):
                half = teacher(images).cls
        assert len(counted) == 2
        assert not torch.equal(half, whole)

    def test_it_forgets_at_the_end_and_after_an_error(self, teacher, counted, images):
        def fails():
            with teacher.shared():
                teacher(images)
                with teacher.shared():
                    teacher(images)
                teacher(images)
                raise KeyError

        with pytest.raises(KeyError):
            fails()
        assert len(counted) == 1
        teacher(images)
        teacher(images)
        assert len(counted) == 3

    def test_features_that_were_changed_are_handed_to_nobody(self, teacher, images):
        with teacher.shared():
            teacher(images).cls.zero_()
            with pytest.raises(ValueError, match="changed in place"):
                teacher(images)


def test_a_teacher_of_half_precision_beside_a_student_of_float32(images):
    model = vit(36)
    half = proteus.Teacher(model, image_size=32, precision="bf16")
    plain = proteus.Teacher(model, image_size=32)
    seen = []
    hook = model.blocks[0].attn.qkv.register_forward_hook(lambda m, a, o: seen.append(o.dtype))
    low, full = half(images), plain(images)
    hook.remove()
    assert seen == [torch.bfloat16, torch.float32]
    assert 0 < float((low.patches - full.patches).norm() / full.patches.norm()) < 0.02
    losses = proteus.Distiller(half, proteus.Student(vit(24), image_size=32))(images)
    assert losses.total.dtype == torch.float32


def test_an_unknown_precision_of_a_teacher_is_refused():
    with pytest.raises(ValueError, match=r"Teacher: unknown precision. Got 'int8'; expected bf16"):
        proteus.Teacher(vit(36), image_size=32, precision="int8")
