"""Two teachers into one student: a ViT and a CNN, each with its own size, statistics and heads.

python examples/16_two_teachers.py
"""

import torch

import proteus
from proteus.teachers import MultiTeacherDistiller
from proteus.training import fit

teachers = {
    "vit": proteus.Teacher("demo-teacher"),
    # Random here; with the extra `teachers`: proteus.Teacher("efficientnet_lite0", image_size=64).
    "cnn": proteus.Teacher("test_resnet", pretrained=False, image_size=64),
}
student = proteus.Student("demo-student", image_size=64)
distiller = MultiTeacherDistiller(teachers, student, weights={"vit": 1.0, "cnn": 0.5}, drop=0.25)
print(distiller)

images = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8)
rows = fit(distiller, [images], steps=10, lr=1e-3, progress=False)
for row in (rows[0], rows[-1]):
    print({name: round(value, 3) for name, value in row.items() if "_" in name})
