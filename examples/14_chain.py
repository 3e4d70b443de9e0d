"""A chain: the demo's teacher to a ViT a quarter of its size, and that to a CNN for a device.

python examples/14_chain.py

Each stage is a run of its own in `chain/`; the second has settings of its own. Started again after
whatever ended it, `resume="auto"` goes on in the stage where it was.
"""

from pathlib import Path

import proteus.demo
from proteus.recipes import Recipe, Stage, run_chain, stages_table, with_settings
from proteus.report.page import text_table

images = Path(proteus.demo.__file__).parent / "images"
recipe = with_settings(
    Recipe(),
    {
        "science.model.teacher": "demo-teacher",
        "science.data.paths": [str(images / "train.tar")],
        "science.data.batch_size": 16,
        "science.data.steps": 20,
        "science.optimizer.lr": 2e-3,
        "machine.device": "cpu",
        "machine.workers": 0,
        "machine.watch": [str(images / "test.tar")],
        "machine.watch_every": 20,
    },
)
small = Stage("demo-student")
smaller = Stage(
    "mobilenetv3_small_050",
    {"science.loss.feature": 0, "science.loss.patch": 0, "science.optimizer.lr": 5e-3},
)
results = run_chain(recipe, [small, smaller], "chain", resume="auto", progress=False)
print(text_table(stages_table(results)))
print("The smallest student:", results[-1].folder / "export")
