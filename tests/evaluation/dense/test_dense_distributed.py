"""The same numbers from one process and from two."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import torch
from PIL import Image
from torch import distributed

torch.set_num_threads(1)
if sys.argv[2] != "1":
    meeting = "file://" + sys.argv[1] + "/meeting"
    distributed.init_process_group("gloo", meeting, rank=int(sys.argv[3]), world_size=2)
from proteus.evaluate import depth, robustness, segmentation
from proteus.evaluation.dense.maps import open_segmentation
from proteus.evaluation.dense.prediction import score_set
from proteus.world import leave

torch.manual_seed(0)
slope = Image.linear_gradient("L")
images = [slope.resize((24 + 4 * (i // 2), 16)).convert("RGB") for i in range(5)]
grey = [torch.tensor(list(i.convert("L").getdata())).view(i.height, i.width) for i in images]
model = torch.nn.Conv2d(3, 6, 4, stride=4)
options = {"image_size": 16, "iterations": 20, "batch_size": 2, "lr": 0.02}
marked = [(i, (g > 120).long()) for i, g in zip(images, grey)]
found = segmentation(model, marked, marked, num_classes=2, **options)
far = [(i, 1 + g / 80) for i, g in zip(images, grey)]
deep = depth(model, far, far, mode="linear", **options)

class Bright:
    num_classes, image_size, resize = 2, 16, 16
    def __call__(self, images):
        mean = images.float().mean((1, 2, 3)) / 255
        return torch.stack([1 - mean, mean], 1)

labelled = [(image, n % 2) for n, image in enumerate(images)]
kept = robustness(Bright(), labelled, corruptions=["gaussian_noise"])

def picky(output, target):
    if sys.argv[3] == "1":
        raise ValueError("one process cannot score its own")
    return 0

refused = ""
try:
    score_set(found.predictor, open_segmentation(marked, num_classes=2), picky)
except ValueError as error:
    refused = str(error)
assert refused == ("one process cannot score its own" if sys.argv[2] == "2" else "")

rows = [found.to_dict(), deep.to_dict(), kept.to_dict()]
with open(sys.argv[1] + "/" + sys.argv[2] + sys.argv[3] + ".json", "w") as file:
    json.dump(rows, file)
leave()  # a process that ends with gloo's threads alive can be aborted
"""


@pytest.mark.slow
def test_one_process_and_two_give_the_same_numbers(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[3]
    runs = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path), world, rank], cwd=root)
        for world, rank in (("1", "0"), ("2", "0"), ("2", "1"))
    ]
    assert [run.wait(timeout=240) for run in runs] == [0, 0, 0]
    one, *two = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("10", "20", "21")]
    assert two == [one, one]
