"""What a run of the paper costs, by a formula: its list must not build all models.

`counting` counts on the real modules; a test holds the formula against it.
"""

from typing import NamedTuple

from .accelerators import AUTHORS_RATE
from .recipe import Recipe

# Width and depth of the paper's models, by the end of their names.
_SIZES = {
    "dinov2_vits14": (384, 12), "dinov2_vitb14": (768, 12), "dinov2_vitl14": (1024, 24),
    "dinov2_vitg14": (1536, 40), "synclr_vitl14": (1024, 24), "clip_vitl14": (1024, 24),
    "vit_tiny_patch14": (192, 12), "vit_small_patch14": (384, 12), "vit_base_patch14": (768, 12),
    "vit_large_patch14": (1024, 24), "vit_base_patch14_synclr": (768, 12),
    "vit_base_patch14_clip": (768, 12), "deit_small_patch16_224.fb_in1k": (384, 12),
    "deit_tiny_patch16_224": (192, 12),
}  # fmt: skip
IMAGENET = 1_281_167


class Cost(NamedTuple):
    """Estimates for one run.

    Attributes:
        images: Images seen, on ImageNet-1K where the recipe counts epochs.
        steps: Optimizer steps.
        gmac: 10^9 multiply-adds an image: teacher once (if it teaches), student forward and
            backward (three times), the masked view for the masked images only.
        a100_hours: On GPUs as busy as the authors' were.
    """

    images: int
    steps: int
    gmac: float
    a100_hours: float


def cost(recipe: Recipe) -> Cost | None:
    """Cost of a run of the paper; None if its models are not the paper's, or length or size open.

    Examples:
        >>> from proteus.recipes import recipe
        >>> found = cost(recipe("s14-dinov2-b14"))
        >>> found.steps, round(found.gmac, 1)
        (375342, 50.7)
    """
    science = recipe.science
    teacher, student = _SIZES.get(science.model.teacher), _SIZES.get(science.model.student)
    data = science.data
    size = science.model.image_size
    if teacher is None or student is None or size is None:
        return None
    if data.epochs is not None:
        images = round(data.epochs * IMAGENET)
    elif data.steps is not None or data.images is not None:
        images = data.images or (data.steps or 0) * data.batch_size
    else:
        return None
    side = 16 if "_patch16" in science.model.student else 14
    masked = science.loss.patch != 0 and science.logits is None
    views = 1 + (science.masks.probability if masked else 0)
    optimizer = science.optimizer
    share = 0.5 if optimizer.first_share is None else optimizer.first_share
    small = size if optimizer.first_scale is None else round(size * optimizer.first_scale)
    macs = (
        3
        * views
        * sum(
            part * _forward(*student, pixels, side)
            for part, pixels in ((share, small), (1 - share, size))
        )
    )
    if science.logits is None or science.logits.kl:
        looks = 1.0 if data.views is None else min(1.0, data.views * IMAGENET / images)
        looks = 0.0 if data.prepared is not None else looks
        macs += looks * _forward(*teacher, science.model.teacher_image_size or size, side)
    hours = images * 2 * macs / AUTHORS_RATE / 3600
    return Cost(images, round(images / data.batch_size), macs / 1e9, hours)


def _forward(width: int, depth: int, image_size: int, side: int) -> float:
    """Multiply-adds of a ViT: 12 D^2 a token and block, attention, and the patch embedding."""
    patches = (image_size // side) ** 2
    tokens, pixels = patches + 1, 3 * side * side
    blocks = depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
    return float(blocks + patches * pixels * width)
