"""What earlier versions wrote still loads: `before/COMMIT` holds files as they were written."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import proteus
from proteus.evaluation.cache import FeatureCache

FOLDERS = sorted((Path(__file__).parent / "before").iterdir())
SMALL = {
    "img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 3, "num_classes": 0, "patch_size": 8,
}  # fmt: skip
every = pytest.mark.parametrize("before", FOLDERS, ids=lambda folder: folder.name)


@every
def test_a_run_goes_on_to_the_same_numbers(before, tmp_path):
    shutil.copytree(before / "run", tmp_path / "run")
    torch.manual_seed(0)
    models = [timm.create_model("vit_tiny_patch16_224", **SMALL) for _ in range(2)]
    teacher = proteus.Teacher(models[0], image_size=32)
    distiller = proteus.Distiller(teacher, proteus.Student(models[1], image_size=32))
    seeds = (torch.Generator().manual_seed(n) for n in range(4))
    batches = [torch.rand(2, 3, 32, 32, generator=seed) for seed in seeds]
    rows = distiller.fit(
        batches, steps=4, save_every=2, out=tmp_path / "run", resume=True, device="cpu",
        progress=False,
    )  # fmt: skip
    then = json.loads((before / "rows.json").read_text())
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row, earlier in zip(rows, then, strict=True):
        assert row == pytest.approx(earlier, rel=1e-4)


@every
def test_an_export_gives_what_it_gave(before):
    stored = load_file(before / "output.safetensors")
    model = proteus.load_pretrained(before / "export")
    teacher = proteus.Teacher(f"local-dir:{before / 'export'}", normalize=False)
    with torch.no_grad():
        torch.testing.assert_close(model(stored["images"]), stored["output"], rtol=0, atol=1e-5)
    cls = teacher(stored["images"]).cls
    torch.testing.assert_close(cls, stored["output"], rtol=0, atol=1e-5)


@every
def test_cached_features_are_found(before):
    cache = FeatureCache(before / "cache")
    (file,) = (before / "cache").glob("*.safetensors")
    found = cache.load(file.name.partition(".")[0], rows=4)
    assert found is not None
    assert found["labels"].tolist() == [0, 1, 0, 1]
    assert found["cls"].isfinite().all()
