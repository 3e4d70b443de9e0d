"""Weights in and out: a file of the Proteus authors to timm, transformers, torch.export.

    python examples/04_weights.py

The authors' files are not shipped with the package; this one has their layout and random numbers.
"""

import timm
import torch

import proteus
from proteus import exports
from proteus.weights import from_proteus

backbone = timm.create_model(
    "vit_small_patch14_dinov2", img_size=56, depth=2, num_classes=0, init_values=1.0
)
tensors = {f"student.backbone.{name}": value for name, value in backbone.state_dict().items()}
torch.save({"model": tensors, "epoch": 299}, "authors.pth")

# In: the architecture is read from the tensors, and every key must be used.
model = from_proteus("authors.pth", image_size=70)
student = proteus.Student(model, image_size=70)

# Out: timm's layout first, everything else from there.
folder = proteus.save_pretrained(student, "exported", details={"license": "mit"})
model = proteus.load_pretrained(folder)
exports.to_transformers(model, "for-transformers")  # AutoModel.from_pretrained("for-transformers")
exports.to_torch_export(model, "student.pt2")

images = torch.rand(2, 3, 70, 70)
program = torch.export.load("student.pt2").module()
cls, patches = program(images)
with torch.no_grad():
    difference = (model(images) - cls).abs().max().item()
print(f"class token {tuple(cls.shape)}, patches {tuple(patches.shape)}, within {difference:.0e}")
