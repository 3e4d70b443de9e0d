"""A small CNN of your own for a device, taught by a ViT: all three terms.

A convolution sees its neighbours, so patches are hidden in the image itself, by a colour that is
learned. The CNN's grid is coarser than the teacher's; the teacher's tokens are averaged to it.

    python examples/03_cnn_student.py
"""

import itertools

import torch
from torch import Tensor, nn

import proteus


class SmallCNN(nn.Module):
    """Stands for your own: stride 16, width 96; a feature map is all that it has to return."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 72, 96)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.GELU())
                for i, o in itertools.pairwise(widths)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


teacher = proteus.Teacher("demo-teacher")  # 8 px patches, a grid of 8x8 at 64 px
student = proteus.Student(SmallCNN(), image_size=64)  # 4x4
print(student.hides, teacher.grid, student.grid)  # pixels (8, 8) (4, 4)

distiller = proteus.Distiller(teacher, student)
images = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8)
rows = distiller.fit([images], steps=20, lr=1e-3, progress=False)
for row in (rows[0], rows[-1]):
    print({name: round(row[name], 4) for name in ("total", "token", "feature", "patch")})
# What was distilled is the plain module: torch.onnx, torch.export, its own state_dict.
print(sum(p.numel() for p in student.backbone.parameters()), "parameters")
