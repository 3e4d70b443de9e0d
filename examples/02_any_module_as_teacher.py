"""A teacher that is not in timm: any module whose forward returns `proteus.Features`.

A feature map or a vector would do, too: "A module of your own" in docs/models.md.

python examples/02_any_module_as_teacher.py
"""

import torch
from torch import Tensor, nn

import proteus


class MyTeacher(nn.Module):
    """Stands for your own model: 16 px patches, width 48, with dropout that must stay off."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 48, kernel_size=16, stride=16)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> proteus.Features:
        grid = self.dropout(self.embed(images))
        patches = grid.flatten(2).transpose(1, 2)
        return proteus.Features(patches.mean(dim=1), patches, (grid.shape[2], grid.shape[3]))


# What the images are normalised with is the model's own business: say it, or normalize=False.
teacher = proteus.Teacher(
    MyTeacher(), image_size=64, normalize=((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
)
student = proteus.Student("vit_tiny_patch16_224", image_size=64)
distiller = proteus.Distiller(teacher, student).train()
losses = distiller(torch.rand(8, 3, 64, 64))
losses.total.backward()
print(teacher)
print({name: round(float(term.detach()), 4) for name, term in losses._asdict().items()})
