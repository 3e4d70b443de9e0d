"""The calls of timm's `train.py`, in its order, with the classes it makes them of."""

import importlib
import subprocess
import sys
import types

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver, dispatch_clip_grad

import proteus
from proteus.integrations import ProteusTask
from proteus.training import parameter_groups

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def make(seed=0):
    """As `train.py --num-classes 0` makes a model."""
    torch.manual_seed(seed)
    tiny = {"pretrained": False, "img_size": 32, "depth": 2, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=24, num_classes=0, **tiny)
    other = timm.create_model("vit_tiny_patch16_224", embed_dim=36, num_classes=0, **tiny)
    return proteus.Distiller(proteus.Teacher(other), proteus.Student(model))


def batches(count):
    torch.manual_seed(1)
    return [(torch.rand(4, 3, 32, 32), torch.randint(0, 5, (4,))) for _ in range(count)]


def normalize(images):
    mean, std = (torch.tensor(IMAGENET[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (images - mean) / std


def train(task, optimizer, steps, clip=None):
    """The lines of `train_one_epoch` that touch the task."""
    task.get_trainable_module().train()
    losses = []
    for number, (images, target) in enumerate(steps):
        torch.manual_seed(number)  # of the masks
        result = task(images, target)
        result["loss"].backward()
        if clip is not None:
            dispatch_clip_grad(task.get_clip_parameters(), value=clip, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=number + 1)
        losses.append({name: float(value.detach()) for name, value in result.items()})
    return losses


@pytest.mark.parametrize(
    ("statistics", "tolerance"), [({}, 0.0), (IMAGENET, 1e-5)], ids=["plain", "normalised"]
)
def test_losses_and_gradients_are_the_distillers(statistics, tolerance):
    images, target = batches(1)[0]
    ours, theirs = make(), make()
    torch.manual_seed(7)
    expected = ours(images)
    expected.total.backward()
    task = ProteusTask(theirs, **statistics)
    torch.manual_seed(7)
    result = task(normalize(images) if statistics else images, target)
    result["loss"].backward()
    got = [result[name] for name in ("loss", "token", "feature", "patch")]
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), rtol=0, atol=tolerance)
    seen = 0
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (its.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(its.grad, mine.grad, rtol=0, atol=tolerance)
            seen += bool(mine.grad.abs().sum())
    assert seen > 30
    assert all(not result[name].requires_grad for name in ("token", "feature", "patch"))


def test_steps_of_timms_loop_are_those_of_a_loop_of_ones_own():
    task = ProteusTask(make())
    optimizer = create_optimizer_v2(
        task.get_trainable_module(), opt="adamw", lr=1e-3, weight_decay=0.05
    )
    losses = train(task, optimizer, batches(4), clip=0.5)
    own = make().train()
    ours = torch.optim.AdamW(parameter_groups(own, 0.05), lr=1e-3)
    expected = []
    for number, (images, _) in enumerate(batches(4)):
        torch.manual_seed(number)
        step = own(images)
        step.total.backward()
        torch.nn.utils.clip_grad_norm_(own.trainable_parameters(), 0.5)
        ours.step()
        ours.zero_grad()
        expected.append(float(step.total.detach()))
    assert [one["loss"] for one in losses] == pytest.approx(expected, rel=1e-6)
    assert losses[-1]["loss"] < losses[0]["loss"]


def test_what_does_not_decay_is_what_fit_spares():
    task = ProteusTask(make())
    module = task.get_trainable_module()
    optimizer = create_optimizer_v2(module, opt="adamw", lr=1.0, weight_decay=0.05)
    theirs = {id(p): group["weight_decay"] for group in optimizer.param_groups
              for p in group["params"]}  # fmt: skip
    ours = {id(p): group["weight_decay"] for group in parameter_groups(task.distiller, 0.05)
            for p in group["params"]}  # fmt: skip
    assert theirs == ours
    assert theirs[id(task.distiller.student.mask_token)] == 0


def test_layers_have_rates_from_the_bottom_up():
    task = ProteusTask(make())
    module = task.get_trainable_module()
    optimizer = create_optimizer_v2(module, opt="adamw", lr=1.0, weight_decay=0, layer_decay=0.5)
    rates = {id(p): group["lr_scale"] for group in optimizer.param_groups
             for p in group["params"]}  # fmt: skip
    backbone, loss = task.distiller.student.backbone, task.distiller.loss
    assert rates[id(backbone.patch_embed.proj.weight)] == 0.5**2
    assert rates[id(backbone.blocks[0].attn.qkv.weight)] == 0.5
    assert rates[id(backbone.blocks[1].attn.qkv.weight)] == 1.0
    assert rates[id(loss.patch_head.linear.weight)] == rates[id(backbone.norm.weight)] == 1.0


def test_a_checkpoint_of_timm_is_a_plain_student_and_goes_on(tmp_path):
    task = ProteusTask(make())
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="adamw", lr=1e-3)
    task.setup_ema(decay=0.5)
    train(task, optimizer, batches(2))
    saver = CheckpointSaver(
        task.get_trainable_module(), optimizer, checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path), decreasing=True, task=task,
    )  # fmt: skip
    saver.save_checkpoint(0, metric=1.0)
    path = str(tmp_path / "last.pth.tar")
    saved = torch.load(path, weights_only=True)
    assert not [name for part in saved.values() if isinstance(part, dict) for name in part
                if "teacher" in str(name)]  # fmt: skip
    plain = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, num_heads=3, embed_dim=24, num_classes=0,
        checkpoint_path=path,
    )  # fmt: skip  # it prefers the average
    average = task.get_eval_model(ema=True).module
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(plain.eval()(images), average.eval()(images))
    assert not torch.equal(plain(images), task.get_eval_model().eval()(images))

    again = ProteusTask(make(seed=3))
    once_more = create_optimizer_v2(again.get_trainable_module(), opt="adamw", lr=1e-3)
    # The teacher is in no checkpoint: it is built again, here by taking over its weights.
    again.distiller.teacher.load_state_dict(task.distiller.teacher.state_dict())
    assert resume_task_checkpoint(again, path, once_more, log_info=False) == 1
    again.setup_ema(decay=0.5)
    load_task_ema_checkpoint(again, path)
    following = batches(4)[2:]
    assert train(again, once_more, following) == train(task, optimizer, following)
    pairs = zip(again.state_dict().values(), task.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_checkpoint_of_another_task_is_refused():
    task = ProteusTask(make())
    state = task.get_eval_model().state_dict()
    with pytest.raises(ValueError, match=r"of another task. Got nothing.*--initial-checkpoint"):
        task.load_checkpoint_state(state)
    with pytest.raises(ValueError, match="Got projection"):
        task.load_checkpoint_state(state, {"projection": {}})


def test_the_teacher_follows_and_no_average_copies_it():
    task = ProteusTask(make()).to(torch.float64)
    assert task.device.type == "cpu"
    assert task.distiller.teacher.inputs.mean.dtype == task.mean.dtype == torch.float64
    average = task.setup_ema()
    assert not [m for m in average.modules() if isinstance(m, proteus.Teacher)]
    student = task.distiller.student
    assert sum(p.numel() for p in average.parameters()) == sum(
        p.numel() for p in student.backbone.parameters()
    )


def test_images_that_are_normalised_without_saying_so_are_refused():
    images, target = batches(1)[0]
    with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
        ProteusTask(make())(normalize(images), target)


def test_there_is_nothing_to_validate():
    with pytest.raises(ValueError, match="--val-split ''"):
        ProteusTask(make()).create_evaluator()


def test_that_labels_are_ignored_is_said(caplog):
    with caplog.at_level("INFO", "proteus"):
        ProteusTask(make(), verbose=False)
        assert not caplog.messages
        ProteusTask(make())
    assert "labels are ignored" in caplog.text


@pytest.mark.parametrize("tasks", [None, types.ModuleType("timm.task")], ids=["none", "older"])
def test_an_old_timm_is_refused(monkeypatch, tasks):
    if tasks is not None:
        tasks.TrainingTask = object  # as 1.0.23 to 1.0.26 have it
    monkeypatch.setitem(sys.modules, "timm.task", tasks)
    monkeypatch.delitem(sys.modules, "proteus.integrations.timm_task")
    with pytest.raises(ImportError, match=r"Got timm [\d.]+; expected 1\.0\.27 or newer. Run: pip"):
        importlib.import_module("proteus.integrations.timm_task")


def test_nothing_is_imported_before_it_is_used():
    code = (
        "import sys, proteus.integrations as found; "
        "print({'timm', 'lightning', 'torch'} & set(sys.modules), found.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("set() ['Prote")
    with pytest.raises(AttributeError, match="ProteusTsk"):
        _ = importlib.import_module("proteus.integrations").ProteusTsk


def test_ddp_wraps_what_trains_and_nothing_else(tmp_path):
    plain, wrapped = ProteusTask(make()), ProteusTask(make())
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        assert wrapped.prepare_distributed() is wrapped
        images, target = batches(1)[0]
        results = []
        for task in (plain, wrapped):
            torch.manual_seed(7)
            results.append(task(images, target))
            results[-1]["loss"].backward()
        assert results[0] == results[1]
        saved, expected = wrapped.get_checkpoint_state(), plain.get_checkpoint_state()
        assert saved["state_dict"].keys() == expected["state_dict"].keys()
        assert saved["task_state"]["distiller"].keys() == expected["task_state"]["distiller"].keys()
        with wrapped.no_sync():
            assert not wrapped.trainable_module.require_backward_grad_sync
    finally:
        torch.distributed.destroy_process_group()
