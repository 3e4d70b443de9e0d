"""Measure a model by three protocols on images that are drawn here: no download, half a minute.

    python examples/05_evaluate.py

With your own images: `train = "FOLDER"`, a folder with `train` and `test`, a folder a class.
"""

import numpy as np
import timm
from PIL import Image

from proteus import evaluate


def draw(count, seed):
    """Images of noise with a bright stripe: across for class 0, down for class 1, none for 2."""
    random = np.random.default_rng(seed)
    found = []
    for n in range(count):
        pixels = random.integers(0, 120, (48, 48, 3), dtype=np.uint8)
        place = int(random.integers(4, 40))
        if n % 3 == 0:
            pixels[place : place + 6] += 120
        elif n % 3 == 1:
            pixels[:, place : place + 6] += 120
        found.append((Image.fromarray(pixels), n % 3))
    return found


model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=4)  # random weights
train, test = draw(90, seed=0), draw(45, seed=1)
options = {"image_size": 48, "cache": "features"}  # features are computed once

knn = evaluate.knn(model, train, test, ks=(5, 20), **options)
print(f"k-NN: {knn.best:.1f} % with k = {knn.best_k}")

probe = evaluate.linear_probe(
    model, train, test, select="holdout", augment=False, iterations=100, batch_size=64, **options
)
print(f"linear probe: {probe.score:.1f} % with {probe.head}")

fine = evaluate.logistic_regression(model, train, test, max_iter=100, **options)
print(f"logistic regression: {fine.score:.1f} % with C = {fine.constant:.3g}")

hard = evaluate.robustness(probe.classifier, test, severities=(3,))
print(f"robustness: {hard.clean:.0%} clean, {hard.corrupted:.0%} corrupted")
