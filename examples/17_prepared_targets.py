"""Let the teacher look at each image once, then train as often as you like without it.

    python examples/17_prepared_targets.py --data IMAGES

Each image is seen in two views, which take turns from epoch to epoch; class token and patches of
both are kept in int8. Training reads them beside the images. A run with other seeds, losses or
students uses the same folder.
"""

import argparse

import proteus
from proteus.data import ImageLoader, open_source
from proteus.prepared import prepare

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", nargs="+", required=True)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--batch-size", type=int, default=32)
args = parser.parse_args()

teacher = proteus.Teacher("demo-teacher")
source = open_source(args.data)
targets = prepare(teacher, source, "targets", views=2, dtype="int8")
size = targets.settings.rows * targets.settings.row_bytes
print(f"{targets.settings.rows} views, {size / 1e6:.1f} MB; lost by storing: {targets.error}")

student = proteus.Student("demo-student", image_size=64)
distiller = proteus.Distiller(teacher, student)
loader = ImageLoader(source, batch_size=args.batch_size, image_size=64)
rows = distiller.fit(loader, steps=args.steps, targets=targets, out="run", progress=False)
print(round(rows[0]["total"], 3), "->", round(rows[-1]["total"], 3))
