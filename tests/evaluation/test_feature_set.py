import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from conftest import vit
from proteus.evaluate import extract_features, knn
from proteus.evaluation import FeatureCache, FeatureSet, open_labelled
from proteus.evaluation.feature_set import Resized, eval_transform, probe_resize
from proteus.features import ShapeError


def pictures(count=10, size=(44, 40)):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return [(Image.fromarray(image), n % 3) for n, image in enumerate(pixels)]


@pytest.fixture
def folder(tmp_path):
    for n, (image, label) in enumerate(pictures()):
        (tmp_path / "data" / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "data" / str(label) / f"{n}.png")
    return tmp_path / "data"


class Counting(nn.Conv2d):
    """Counts forward passes, in its class: evaluation works on a copy."""

    images = 0

    def forward(self, x):
        Counting.images += len(x)
        return super().forward(x)


def model():
    torch.manual_seed(0)
    Counting.images = 0
    return Counting(3, 6, 8, stride=8)


def test_pixels_are_those_of_the_authors_transform():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 113, 3), dtype=np.uint8))
    bicubic = transforms.InterpolationMode.BICUBIC
    for size, resize in ((224, 256), (32, 37), (40, 40)):
        steps = [transforms.Resize(resize, bicubic), transforms.CenterCrop(size)]
        expected = transforms.Compose([*steps, transforms.PILToTensor()])(image)
        assert torch.equal(eval_transform(size, resize)(image), expected)
    assert [probe_resize(size) for size in (224, 64, 518)] == [256, 73, 592]


def test_the_extraction_is_the_model_on_each_image_in_order(folder):
    ours = vit(depth=3).eval()
    found = extract_features(ours, folder, image_size=32, blocks=2, batch_size=4)
    data = open_labelled(folder)
    from proteus.evaluation import as_extractor

    images = torch.stack([image for image, _ in Resized(data, 32, probe_resize(32))])
    expected = as_extractor(ours)(images)
    torch.testing.assert_close(found.cls, expected.cls)
    torch.testing.assert_close(found.patches, expected.patches.mean(1))
    torch.testing.assert_close(found.blocks[:, -1], expected.cls)
    assert found.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert (found.names[0], found.num_classes) == ("0/0.png", 3)


def test_a_second_run_reads_the_cache_and_any_change_does_not(folder, tmp_path):
    options = {"image_size": 32, "cache": tmp_path / "cache"}
    ours = model()
    first = extract_features(ours, folder, **options)
    counted = Counting.images
    again = extract_features(ours, folder, **options)
    assert Counting.images == counted + 1  # the probe at construction
    assert torch.equal(first.cls, again.cls)
    assert torch.equal(first.labels, again.labels)

    def runs(function):
        before = Counting.images
        function()
        return Counting.images - before > 1

    assert runs(lambda: extract_features(ours, folder, **{**options, "resize": 32}))
    with torch.no_grad():
        ours.weight[0, 0, 0, 0] += 1
    assert runs(lambda: extract_features(ours, folder, **options))
    next(folder.rglob("*.png")).write_bytes((folder / "1" / "1.png").read_bytes())
    assert runs(lambda: extract_features(ours, folder, **options))


def test_a_run_that_was_cut_off_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    cache, ours = FeatureCache(tmp_path / "cache"), model()
    options = {"image_size": 32, "batch_size": 2, "cache": cache}
    whole = extract_features(ours, folder, image_size=32, batch_size=2)
    save, saved = FeatureCache.save, []

    def cut_off(self, key, tensors, part=None):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(part)
        save(self, key, tensors, part)

    monkeypatch.setattr(FeatureCache, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        extract_features(ours, folder, **options)
    monkeypatch.setattr(FeatureCache, "save", save)
    assert saved == [0, 1, 2]
    before = Counting.images
    found = extract_features(ours, folder, **options)
    assert Counting.images - before == 1 + 10 - 3 * 2
    assert torch.equal(found.cls, whole.cls)
    assert not list((tmp_path / "cache").glob("*.parts"))


def test_a_damaged_cache_file_is_as_if_it_were_not_there(folder, tmp_path):
    options = {"image_size": 32, "cache": tmp_path / "cache"}
    first = extract_features(model(), folder, **options)
    next((tmp_path / "cache").glob("*.safetensors")).write_bytes(b"half a fi")
    assert torch.equal(extract_features(model(), folder, **options).cls, first.cls)


def test_features_that_are_not_finite_name_an_image(folder):
    ours = nn.Conv2d(3, 4, 8, stride=8)
    nn.init.constant_(ours.bias, float("nan"))
    with pytest.raises(ValueError, match=r"10 of 10 images of .*'0/0.png'"):
        extract_features(ours, folder, image_size=32)


def test_an_empty_set_and_a_callable_with_a_cache_are_errors(tmp_path):
    class Mean:
        embed_dim = 3

        def __call__(self, images):
            from proteus import Features

            return Features(
                images.float().mean((2, 3)), images.new_zeros(len(images), 0, 3), (0, 0)
            )

    with pytest.raises(ValueError, match="empty"):
        extract_features(Mean(), [], image_size=32)
    with pytest.raises(ValueError, match="cannot be cached"):
        extract_features(Mean(), pictures(), image_size=32, cache=tmp_path)
    assert extract_features(Mean(), pictures(), image_size=32).patches.eq(0).all()


def test_images_without_a_label_are_an_error_and_no_class():
    unlabelled = [(image, -1) for image, _ in pictures(3)]
    with pytest.raises(ValueError, match=r"without a label. Got 3 labels below 0, such as -1"):
        extract_features(model(), unlabelled, image_size=32)
    with pytest.raises(ValueError, match="without a label"):
        knn(model(), pictures(3), unlabelled, ks=[1], image_size=32)


def test_a_feature_set_has_one_label_for_each_row():
    with pytest.raises(ShapeError, match=r"one label for each image. Got .*\(5,\)"):
        FeatureSet(torch.eye(3), torch.eye(3), torch.arange(5))


def test_knn_says_which_ks_it_left_out_and_its_classifier_agrees():
    result = knn(vit(), pictures(12), pictures(12), ks=(1, 10, 20), image_size=32)
    assert (result.dropped, list(result.top1)) == ((20,), [1, 10])
    assert (result.best, result.best_k) == (100.0, 1)
    data = Resized(open_labelled(pictures(12)), 32, result.classifier.resize)
    votes = result.classifier(torch.stack([image for image, _ in data]))
    assert torch.equal(votes.argmax(1), result.predictions)
    assert json.loads(json.dumps(result.to_dict()))["protocol"] == "knn"


JOB = """
import sys, torch
from torch import distributed
sys.path.insert(0, sys.argv[4])
from conftest import vit
from proteus.evaluate import extract_features, linear_probe
from proteus.world import leave
torch.set_num_threads(1)
if int(sys.argv[3]) > 1:
    distributed.init_process_group("gloo")
torch.manual_seed(0)
model = vit(depth=4)
found = extract_features(model, sys.argv[1], image_size=32, batch_size=2, blocks=4)
options = dict(image_size=32, iterations=3, batch_size=5, learning_rates=[0.1])
probe = linear_probe(model, sys.argv[1] + "/..", sys.argv[1] + "/..", **options)
if not distributed.is_initialized() or distributed.get_rank() == 0:
    torch.save((found.cls, found.blocks, found.labels, probe.weight, probe.score), sys.argv[2])
leave()
"""


FAILING_JOB = """
import sys, torch
from PIL import Image
from torch import distributed
from proteus.evaluation import extract_features
from proteus.world import leave
torch.set_num_threads(1)
rank = int(sys.argv[1])
distributed.init_process_group("gloo", sys.argv[2], rank=rank, world_size=2)
class Images(torch.utils.data.Dataset):
    def __init__(self, broken): self.broken = broken
    def __len__(self): return 4
    def __getitem__(self, index):
        if self.broken and index == 1:
            raise OSError("image 1 is cut off")
        return Image.new("RGB", (8, 8)), index
model = torch.nn.Conv2d(3, 5, 4, stride=4)
try:
    extract_features(model, Images(True), image_size=8, batch_size=1)
except (ValueError, OSError) as error:
    print(error)
print(extract_features(model, Images(False), image_size=8, batch_size=1).labels.tolist())
leave()
"""


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_stops_the_set_in_both(tmp_path):
    words = [sys.executable, "-c", FAILING_JOB]
    meeting = f"file://{tmp_path / 'meeting'}"
    jobs = [
        subprocess.Popen([*words, str(rank), meeting], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        printed = [job.communicate(timeout=60)[0].splitlines() for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    for lines in printed:
        assert "image 1 is cut off" in lines[0]
        assert lines[1] == "[0, 1, 2, 3]"


@pytest.mark.slow
def test_one_and_two_processes_give_the_same_numbers(folder, tmp_path):
    train = folder.rename(tmp_path / "train")
    (tmp_path / "test").symlink_to(train)
    script = tmp_path / "job.py"
    script.write_text(JOB)
    results = []
    for world in (1, 2):
        out = tmp_path / f"{world}.pt"
        words = [str(train), str(out), str(world), str(Path(__file__).parents[1])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        launch = [sys.executable]
        if world == 2:
            launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        subprocess.run([*launch, str(script), *words], check=True, env=environment, timeout=240)
        results.append(torch.load(out))
    for one, two in zip(*results, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(two))
