"""Measure a model's patches: segmentation, depth, and a picture of what it sees.

The images are made here so that this runs anywhere in seconds. With your own, write a path in
their place: ADE20K's or NYU-Depth V2's folder, or tar packs such as `../shared/data/camvid11`.

    python examples/06_dense.py
"""

import torch
from PIL import Image

import proteus
from proteus.evaluate import depth, segmentation
from proteus.evaluation import open_segmentation
from proteus.evaluation.pictures import save_segmentation, save_side_by_side


def street(seed: int) -> tuple[Image.Image, torch.Tensor, torch.Tensor]:
    """Sky above a road that comes nearer: a picture, its classes, its depth in metres."""
    generator = torch.Generator().manual_seed(seed)
    horizon = int(torch.randint(16, 32, (), generator=generator))
    classes = torch.zeros(48, 64, dtype=torch.long)
    classes[horizon:] = 1
    metres = torch.linspace(6, 1, 48)[:, None].expand(48, 64) + torch.rand(1, generator=generator)
    noise = torch.randint(0, 60, (48, 64, 3), generator=generator)
    pixels = (noise + torch.where(classes == 0, 190, 20)[..., None]).byte()
    return Image.fromarray(pixels.numpy()), classes, metres


streets = [street(seed) for seed in range(12)]
model = proteus.Teacher("demo-teacher")

marked = [(image, classes) for image, classes, _ in streets]
result = segmentation(
    model, marked[:8], marked[8:], num_classes=2, image_size=32, iterations=60, lr=3e-3
)
print(f"mIoU {result.scores.miou:.2f}, classes {[round(iou, 2) for iou in result.scores.iou]}")

far = [(image, metres) for image, _, metres in streets]
found = depth(model, far[:8], far[8:], mode="linear", image_size=32, iterations=60, lr=3e-3)
print(f"RMSE {found.scores.rmse:.2f} m")

# The predictor takes images of any size.
print("logits", tuple(result.predictor([Image.new("RGB", (100, 50))]).shape)[1:])

tests = open_segmentation(marked[8:], num_classes=2)
save_segmentation(result.predictor, tests, "predicted.png")
pictures = [image for image, _, _ in streets[:4]]
save_side_by_side({"teacher": model}, pictures, "pca.png", image_size=96)
print("pictures: predicted.png, pca.png")
