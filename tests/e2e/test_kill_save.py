"""kill -9 during a save: what is in the folder is whole, always."""

import random
import subprocess
import sys
import time

import pytest
import torch

import proteus

SAVE_FOREVER = """
import sys, torch, proteus
torch.set_num_threads(1)
student = proteus.Student("demo-student", image_size=64)
value = 0
while True:
    value += 1
    torch.nn.init.constant_(student.backbone.norm.bias, value)
    torch.nn.init.constant_(student.backbone.pos_embed, value)
    proteus.save_pretrained(student, sys.argv[1], details={"value": value})
    print(value, flush=True)
"""


@pytest.mark.slow
def test_a_killed_save_leaves_the_folder_loadable(tmp_path):
    chance = random.Random(0)
    for _ in range(6):
        command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path / "out")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()  # the first save is complete
            time.sleep(chance.uniform(0, 0.5))
            process.kill()
        model = proteus.load_pretrained(tmp_path / "out")
        bias, positions = model.norm.bias, model.pos_embed
        assert (bias == bias[0]).all() and (positions == bias[0]).all()
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 128)
    proteus.save_pretrained(proteus.Student("demo-student", image_size=64), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
