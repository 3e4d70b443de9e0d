"""Slow and obvious, written from the paper; never imported outside tests."""

import torch

from proteus import Losses


def mse(student, teacher):
    """Mean over all elements, one row at a time."""
    pairs = list(zip(student.flatten(0, -2), teacher.flatten(0, -2), strict=True))
    return sum(((s - t) ** 2).mean() for s, t in pairs) / len(pairs)


def two_passes(distiller, images, hidden):
    """The step in two full student passes, every image in both."""
    loss = distiller.loss
    target, seen = distiller.teacher(images), distiller.student(images)
    masked = distiller.student(images, hidden)
    cls = loss.token_head(seen.cls)
    token = mse(cls, target.cls)
    rows = torch.cat([cls[:, None], loss.feature_head(seen.patches)], 1)
    feature = mse(rows, torch.cat([target.cls[:, None], target.patches], 1))
    patch = token * 0
    if hidden.any():
        patch = mse(loss.patch_head(masked.patches)[hidden], target.patches[hidden])
    total = loss.token * token + loss.feature * feature + loss.patch * patch
    return Losses(total, token, feature, patch)
