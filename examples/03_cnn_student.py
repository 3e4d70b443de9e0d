"""A student that cannot have patches hidden: distil without the patch term.

A ResNet has no patch embedding, and its grid differs from the teacher's, so only class tokens are
compared. Building the Distiller with a patch term would say so.

    python examples/03_cnn_student.py
"""

import torch

import proteus

teacher = proteus.Teacher("demo-teacher")
student = proteus.Student("resnet18", image_size=64)
try:
    proteus.Distiller(teacher, student)
except ValueError as error:
    print(error)

loss = proteus.ProteusLoss(student.embed_dim, teacher.embed_dim, feature=0, patch=0)
distiller = proteus.Distiller(teacher, student, loss)
rows = distiller.fit([torch.rand(8, 3, 64, 64)], steps=5, progress=False)
print({name: round(value, 4) for name, value in rows[-1].items()})
