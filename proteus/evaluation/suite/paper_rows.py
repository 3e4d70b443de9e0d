"""What the paper reports, to stand beside one's own numbers."""

from ...paper import PAPER
from ..sets.paper_sets import set_of

_IMAGENET = ("imagenet", "imagenet1k", "imagenet-1k")  # and not ImageNet-R, Imagenette, …


def paper_score(model: str, protocol: str, name: str) -> float | None:
    """The paper's number for a model, a protocol of the suite and a set; None where it has none.

    Args:
        model: A name of `list_pretrained()` or of a teacher.
        protocol: `finegrained`, `linear`, `segmentation`, `depth`, …
        name: Of the set.

    Examples:
        >>> paper_score("proteus-vit-s14", "finegrained", "flowers")
        99.0
        >>> paper_score("proteus-vit-s14", "finegrained", "butterflies75") is None
        True
    """
    row = PAPER.get(model, {})
    known = set_of(name)
    if protocol == "finegrained" and known is not None:
        return row.get(known.title)
    if protocol == "linear" and name.lower() in _IMAGENET:
        return row.get("ImageNet")
    for task, start, title in (("segmentation", "ade20k", "ADE20K"), ("depth", "nyu", "NYUd")):
        if name.lower().startswith(start) and protocol in (task, f"{task}-finetune"):
            return row.get(f"{title} {'linear' if protocol == task else 'fine-tune'}")
    return None
