"""A teacher of transformers: a module as it is, or by name, hf-transformers:OWNER/REPO or a folder.

python examples/12_transformers_teacher.py
"""

import torch
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

import proteus

# Random and small, so that it runs anywhere; yours is Dinov2WithRegistersModel.from_pretrained(…).
config = Dinov2WithRegistersConfig(
    hidden_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=16
)
teacher = proteus.Teacher(Dinov2WithRegistersModel(config))
student = proteus.Student("vit_tiny_patch16_224", image_size=64)
distiller = proteus.Distiller(teacher, student).train()
losses = distiller(torch.rand(8, 3, 64, 64))
losses.total.backward()
print(teacher)
print({name: round(float(term.detach()), 4) for name, term in losses._asdict().items()})
