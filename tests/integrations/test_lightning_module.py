import importlib
import sys

import pytest
import timm
import torch

import proteus
from proteus.training import EpochSchedule, fit
from proteus.training.watch import Watch

lightning = pytest.importorskip("lightning.pytorch")
# Lightning's own, whatever it is given.
pytestmark = pytest.mark.filterwarnings("ignore")

from proteus.integrations import ProteusModule, WatchCallback  # noqa: E402 - after the skip


def make():
    """With drop path, which draws random numbers of its own."""
    torch.manual_seed(0)
    tiny = {"pretrained": False, "img_size": 32, "depth": 2, "num_heads": 3, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=24, drop_path_rate=0.3, **tiny)
    teacher = timm.create_model("vit_tiny_patch16_224", embed_dim=36, **tiny)
    return proteus.Distiller(proteus.Teacher(teacher), proteus.Student(model))


def batches(count=6):
    torch.manual_seed(1)
    return [torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8) for _ in range(count)]


class Kept(lightning.Callback):
    """What was logged, step by step."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, *rest):
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def run(module, data, steps, *callbacks, folder, **options):
    kept = Kept()
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, callbacks=[*callbacks, kept],
        default_root_dir=folder, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    # Of a list, Lightning would take each item for a loader.
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    return trainer, kept.rows


@pytest.mark.parametrize("lr", [1e-3, EpochSchedule(1e-3, 2, 3, warmup_epochs=1)])
def test_weights_are_those_of_fit_to_the_bit(tmp_path, lr):
    theirs, ours = make(), make()
    trainer, rows = run(ProteusModule(theirs, lr=lr, seed=5), batches(), 6, folder=tmp_path)
    expected = fit(ours, batches(), steps=6, lr=lr, seed=5, device="cpu", progress=False)
    for name in ("total", "token", "feature", "patch"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    mine = ours.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in theirs.state_dict().items())
    assert trainer.global_step == 6


def test_accumulated_parts_draw_the_masks_of_one_batch(tmp_path):
    class Counting(ProteusModule):
        def training_step(self, batch, batch_idx):
            places.append(batch_idx)
            return super().training_step(batch, batch_idx)

    places, distiller = [], make()
    parts = []
    drawn = distiller.masks.on
    distiller.masks.on = lambda grid: Spy(drawn(grid), parts)
    module = Counting(distiller)
    run(module, batches(4), 2, folder=tmp_path, accumulate_grad_batches=2)
    assert places == [0, 1, 2, 3]
    assert parts == [(0, 2), (1, 2), (0, 2), (1, 2)]


class Spy:
    def __init__(self, masks, parts):
        self.masks, self.parts = masks, parts

    def draw(self, count, generator, device, part):
        self.parts.append(part)
        return self.masks.draw(count, generator, device, part)


def test_the_callback_logs_what_watch_measures_and_exports(tmp_path):
    distiller = make()
    held_out = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    watch = Watch(held_out, every=2)
    callback = WatchCallback(watch, export=tmp_path / "export")
    _, rows = run(ProteusModule(distiller), batches(), 4, callback, folder=tmp_path)
    assert [("watch/cls_cosine" in row) for row in rows] == [False, True, True, True]
    expected = {f"watch/{name}": value for name, value in watch(distiller).items()}
    shown = {name: value for name, value in rows[3].items() if name.startswith("watch/")}
    assert shown == pytest.approx(expected, rel=1e-6)
    assert shown != {name: rows[1][name] for name in shown}
    exported = proteus.load_pretrained(tmp_path / "export")
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(exported(images), distiller.student.backbone.eval()(images))


def test_watching_changes_no_number(tmp_path):
    watched, alone = make(), make()
    watch = Watch(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), every=1)
    run(ProteusModule(watched), batches(), 3, WatchCallback(watch), folder=tmp_path)
    run(ProteusModule(alone), batches(), 3, folder=tmp_path)
    pairs = zip(watched.state_dict().values(), alone.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_without_lightning_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lightning"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "proteus.integrations.lightning_module")
    with pytest.raises(ImportError, match=r"Run: pip install lightning$"):
        importlib.import_module("proteus.integrations.lightning_module")
