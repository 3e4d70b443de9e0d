"""Train the small teacher that ships inside the package (`proteus/demo/teacher`).

A ViT (patch 8, width 192, depth 6, 64 px) is trained with labels on four research image sets, then
saved in timm's folder layout in float16. Supervised training is enough here: what the demo needs is
a teacher whose features are clearly better than those of an untrained network.

Training starts at 32 px and ends at 64 px. Sixteen tokens instead of sixty-four make the early
epochs five times cheaper, and the positions are resampled by timm at each change.

    python tools/train_demo_teacher.py --packs ../shared/data --out runs/demo-teacher

About 75 minutes on two CPU cores. `--fraction 0.01` makes a smoke run.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from proteus.data import decode

SIZE = 64
TRAIN_SETS = ["proxy-tinyimagenet", "teacher-cifar10", "teacher-pacs", "teacher-scenes6"]
KNN_SETS = ["signdigits10", "flowers5", "butterflies75", "dtd10", "scene15"]
STAGES = [(32, 24), (48, 6), (64, 6)]  # (image size, epochs)
BATCH = 128
MODEL_ARGS = {
    "img_size": SIZE, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3,
}  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_pack(folder: Path, split: str) -> Iterator[tuple[Image.Image, int]]:
    """Yield (image, label) of `<set>-<split>-NNN.tar`; labels of proxy sets are in a side file."""
    side = folder.parent / f"{folder.name}-{split}.labels.tsv"
    labels = (
        dict(line.split("\t")[:2] for line in side.read_text().splitlines())
        if side.exists()
        else {}
    )
    for shard in sorted(folder.parent.glob(f"{folder.name}-{split}-*.tar")):
        with tarfile.open(shard) as tar:
            sample: dict[str, dict[str, bytes]] = {}
            for member in tar:
                key, extension = member.name.split(".", 1)
                handle = tar.extractfile(member)
                assert handle is not None
                sample.setdefault(key, {})[extension] = handle.read()
        for key, parts in sample.items():
            label = int(parts["cls"]) if "cls" in parts else int(labels[key])
            yield decode(parts["jpg"]), label


def square(image: Image.Image) -> np.ndarray:
    """Shorter side to 64 px, centre crop: [64, 64, 3] uint8."""
    scale = SIZE / min(image.size)
    width, height = (max(SIZE, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def load(packs: Path, name: str, split: str) -> tuple[Tensor, Tensor]:
    """All images of a split as uint8 [n, 3, 64, 64] and their labels [n]."""
    pairs = [(square(image), label) for image, label in read_pack(packs / name, split)]
    images = torch.from_numpy(np.stack([pixels for pixels, _ in pairs])).permute(0, 3, 1, 2)
    return images.contiguous(), torch.tensor([label for _, label in pairs])


def augment(images: Tensor, size: int) -> Tensor:
    """Random crop, flip, brightness, contrast, saturation, per image. uint8 -> normalised."""
    count = images.shape[0]
    x = images.float().div_(255)
    scale = torch.empty(count).uniform_(0.3, 1.0).sqrt()
    ratio = torch.empty(count).uniform_(math.log(3 / 4) / 2, math.log(4 / 3) / 2).exp()
    width, height = (scale * ratio).clamp(max=1), (scale / ratio).clamp(max=1)
    flip = torch.randint(0, 2, (count,)) * 2.0 - 1.0
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    theta[:, 0, 2] = (torch.rand(count) * 2 - 1) * (1 - width)
    theta[:, 1, 2] = (torch.rand(count) * 2 - 1) * (1 - height)
    if size < SIZE:
        x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    x = x * torch.empty(count, 1, 1, 1).uniform_(0.7, 1.3)
    x = torch.lerp(
        x.mean((1, 2, 3), keepdim=True).expand_as(x),
        x,
        torch.empty(count, 1, 1, 1).uniform_(0.7, 1.3),
    )
    x = torch.lerp(
        x.mean(1, keepdim=True).expand_as(x), x, torch.empty(count, 1, 1, 1).uniform_(0.3, 1.3)
    )
    return normalise(x.clamp_(0, 1))


def normalise(x: Tensor) -> Tensor:
    """[0, 1] -> zero mean, unit variance."""
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def cutmix(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Paste one box of a permuted batch; `target` [n, classes] is mixed by area."""
    size, order = x.shape[-1], torch.randperm(x.shape[0])
    side = math.sqrt(float(torch.rand(()))) * size
    top, left = (int(torch.randint(0, size, ())) for _ in range(2))
    box = (
        slice(max(0, int(top - side / 2)), min(size, int(top + side / 2))),
        slice(max(0, int(left - side / 2)), min(size, int(left + side / 2))),
    )
    x = x.clone()
    x[:, :, box[0], box[1]] = x[order][:, :, box[0], box[1]]
    area = (box[0].stop - box[0].start) * (box[1].stop - box[1].start) / size**2
    return x, target * (1 - area) + target[order] * area


def build() -> VisionTransformer:
    """A plain timm ViT whose positions start as 2-D sines and cosines, which small sets need."""
    model = VisionTransformer(num_classes=0, **MODEL_ARGS)
    grid, dim = SIZE // 8, MODEL_ARGS["embed_dim"]
    frequency = 1.0 / (100.0 ** (torch.arange(dim // 4) / (dim // 4)))
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in (x, y)]
    table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1) * 0.2
    assert isinstance(model.pos_embed, nn.Parameter)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[0, 1:] = table
    return model


@torch.no_grad()
def embed(model: VisionTransformer, images: Tensor) -> Tensor:
    """Unit-length class tokens of uint8 64 px images."""
    model.eval()
    rows = [
        model.forward_features(normalise(chunk.float() / 255))[:, 0] for chunk in images.split(250)
    ]
    model.train()
    return F.normalize(torch.cat(rows), dim=1)


def knn(
    model: VisionTransformer, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], k: int = 20
) -> float:
    """Top-1 (%) of weighted k-NN with temperature 0.07."""
    similarity, index = (embed(model, test[0]) @ embed(model, train[0]).T).topk(k, dim=1)
    votes = F.one_hot(train[1][index]) * (similarity / 0.07).softmax(1)[..., None]
    return float((votes.sum(1).argmax(1) == test[1]).float().mean() * 100)


def split_parameters(*modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(weights that decay, biases, norms, tokens and positions that do not)."""
    named = [pair for module in modules for pair in module.named_parameters()]
    decays = [p.ndim > 1 and name not in ("pos_embed", "cls_token") for name, p in named]
    return (
        [p for (_, p), d in zip(named, decays, strict=True) if d],
        [p for (_, p), d in zip(named, decays, strict=True) if not d],
    )


def load_broad(packs: Path) -> tuple[Tensor, Tensor]:
    """All labelled training images, classes of the sets numbered one after the other."""
    images, labels, classes = [], [], 0
    for name in TRAIN_SETS:
        pixels, own = load(packs, name, "train")
        images.append(pixels)
        labels.append(own + classes)
        classes += int(own.max()) + 1
    return torch.cat(images), torch.cat(labels)


class Trainer:
    """Optimizer, heads and step counter of one training: the model has a new head pair each."""

    def __init__(self, model: VisionTransformer, classes: int, lr: float, total: int, warmup: int):
        self.model, self.classes, self.lr, self.total, self.warmup = (
            model,
            classes,
            lr,
            total,
            warmup,
        )
        self.heads = nn.ModuleList([nn.Linear(MODEL_ARGS["embed_dim"], classes) for _ in range(2)])
        decayed, _ = split_parameters(model, self.heads)
        self.optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}], lr=lr)
        self.optimizer.add_param_group({"params": [], "weight_decay": 0.0})
        self.step = 0

    def resize(self, size: int) -> None:
        """Change the image size; timm makes a new positions parameter each time."""
        self.model.set_input_size(img_size=size)
        self.optimizer.param_groups[1]["params"] = split_parameters(self.model, self.heads)[1]

    def train_on(self, images: Tensor, labels: Tensor, size: int, mix: float) -> float:
        """One step on uint8 images; returns the loss."""
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / self.total))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (self.step + 1) / self.warmup, cosine)
        x, target = augment(images, size), F.one_hot(labels, self.classes).float()
        if torch.rand(()) < mix:
            x, target = cutmix(x, target)
        tokens = self.model.forward_features(x)
        # The mean patch is trained too: it makes the patch features worth distilling.
        loss = sum(
            F.cross_entropy(head(vector), target, label_smoothing=0.1)
            for head, vector in zip(self.heads, (tokens[:, 0], tokens[:, 1:].mean(1)), strict=True)
        )
        assert isinstance(loss, Tensor)
        loss.backward()
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.heads.parameters()], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())


def report(model: VisionTransformer, args: argparse.Namespace, line: str) -> None:
    """Score a 64 px copy, save it, print a line."""
    full = copy.deepcopy(model)
    full.set_input_size(img_size=SIZE)
    scores = {
        name: round(knn(full, load(args.packs, name, "train"), load(args.packs, name, "test")), 1)
        for name in KNN_SETS
    }
    save(full, scores, args.out)
    print(line, json.dumps(scores), flush=True)


def train(args: argparse.Namespace) -> VisionTransformer:
    """The broad training: all stages of `STAGES`."""
    images, labels = load_broad(args.packs)
    per_epoch = max(1, int(len(images) * args.fraction) // BATCH)
    total, model = per_epoch * sum(epochs for _, epochs in STAGES), build()
    trainer = Trainer(model, int(labels.max()) + 1, args.lr, total, warmup=2 * per_epoch)
    for size, epochs in STAGES:
        trainer.resize(size)
        for epoch in range(epochs):
            order = torch.randperm(len(images))[: per_epoch * BATCH].split(BATCH)
            loss = sum(trainer.train_on(images[i], labels[i], size, mix=0.5) for i in order)
            line = f"{size} px, epoch {epoch + 1}/{epochs}, loss {loss / len(order):.3f}"
            if epoch == epochs - 1:
                report(model, args, line)
            else:
                print(line, flush=True)
    return model


CARD = """---
library_name: timm
license: other
license_name: research-use-only
tags: [proteus, demo]
---

# The teacher of `proteus demo`

A small vision transformer (patch 8, width 192, depth 6, 64x64 pixels, 2.72 M parameters,
float16), made only to show distillation on a laptop. It is no foundation model: do not use it
for anything else.

## Data

Labelled research images, resized to 64 pixels: Tiny-ImageNet (20,000 of ImageNet, 200 classes),
CIFAR-10 (3,100), PACS (3,104), Intel scenes (2,760). No image of the sets below was used.

## Licence

Research use only, because of the images it was trained on (ImageNet: non-commercial research
and education; PACS, CIFAR-10 and the scenes: distributed for research). A student distilled
from it inherits that. The code around it is Apache-2.0; deleting this folder takes only the
demo away.

## Scores

k-NN top-1 (k = 20, cosine, temperature 0.07) in percent, at 64 pixels, on subsets that are not
comparable with published numbers.

{scores}

Made by `python tools/train_demo_teacher.py` with seed 0, in about 75 minutes on two CPU cores.
It is supervised: cross entropy on the class token and on the mean patch, with cutmix and label
smoothing.
"""


def save(model: VisionTransformer, scores: dict[str, float], folder: Path) -> None:
    """Write timm's Hub layout, weights in float16 (the file must stay under 6 MB), and the card."""
    half = VisionTransformer(num_classes=0, **MODEL_ARGS)
    half.load_state_dict(model.state_dict())
    half.pretrained_cfg = {
        "architecture": "vit_tiny_patch16_224",
        "mean": MEAN,
        "std": STD,
        "input_size": (3, SIZE, SIZE),
    }
    save_for_hf(
        half.half(),
        str(folder),
        model_config={"num_classes": 0, "num_features": MODEL_ARGS["embed_dim"]},
        model_args=MODEL_ARGS,
        safe_serialization=True,
    )
    (folder / "model.safetensors").chmod(0o644)
    write_card(scores, folder)


def write_card(scores: dict[str, float], folder: Path) -> None:
    """`scores.json`, and `README.md` with the same numbers."""
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    rows = "".join(f"| {name} | {score} |\n" for name, score in scores.items())
    table = f"| set | top-1 |\n| --- | --- |\n{rows}"
    (folder / "README.md").write_text(CARD.format(scores=table.rstrip()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packs", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fraction", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    train(arguments)
