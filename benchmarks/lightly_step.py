"""The step of lightly-train's `distillationv3`, as one of the steps to compare with.

Its own module and loss on the same two timm models. What its loop adds is left out: transforms,
Lightning, learning-rate schedule. Needs an environment with `lightly-train` (AGPL), which this
project does not depend on.
"""

import functools
from typing import Any

import torch
from authors_step import normalized
from torch import Tensor, nn


class LightlyStep:
    """Its method on a batch: one pass of teacher and student, class token and patches.

    Args:
        teacher: A timm model, likewise
        student: the student.
        batch_size: Images a step.
        device: Where.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, batch_size: int, device: str):
        from lightly_train._methods.distillationv3 import distillationv3
        from lightly_train._models import package_helpers
        from lightly_train._models.embedding_model import EmbeddingModel

        wrapped = package_helpers.get_wrapped_model(
            model=student, num_input_channels=3, model_args=None, load_weights=False
        )
        arguments = distillationv3.DistillationV3Args(queue_size=4096, teacher=teacher)
        self.method = distillationv3.DistillationV3(
            arguments, distillationv3.DistillationV3AdamWArgs(), EmbeddingModel(wrapped),
            batch_size, 3,
        ).to(device)  # fmt: skip
        modules = self.method.trainable_modules().modules
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.05)
        self._parameters = parameters
        self._normalize = functools.partial(normalized, device=device)

    def loss(self, images: Tensor) -> Tensor:
        """Of uint8 images; it asks the device for both terms, as it does in its loop."""
        batch: Any = {"views": [self._normalize(images)]}
        loss: Tensor = self.method.training_step_impl(batch, 0).loss
        return loss

    def clip(self) -> None:
        """Its loop clips the gradient to a norm of 1."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
