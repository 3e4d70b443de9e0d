"""A student with patches of 16 pixels, a teacher with patches of 14: each at its own image size.

    python examples/15_two_patch_sizes.py

Images arrive once, at the student's 64 pixels; the teacher gets them at 56, where its grid is the
student's 4x4, so tokens are compared one to one and masks fit both.
"""

import timm
import torch

import proteus

# Stands for dinov2_vits14, which has to be downloaded: Teacher("dinov2_vits14", grid=student.grid).
plain = timm.create_model("vit_small_patch14_dinov2", img_size=224, depth=2, num_classes=0)

student = proteus.Student("vit_tiny_patch16_224", image_size=64)
teacher = proteus.Teacher(plain, grid=student.grid)
distiller = proteus.Distiller(teacher, student)
print(teacher.image_size, student.image_size, distiller.image_size, distiller.grid)

losses = distiller(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
losses.total.backward()
print({name: round(float(term.detach()), 4) for name, term in losses._asdict().items()})
