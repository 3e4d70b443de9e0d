"""Words of error messages: the nearest known name, and how to install what is missing."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that begin with it or look like it, as a question; "" where none does.

    Examples:
        >>> nearest("dino", ["clip_vitb16", "dinov2_vits14", "dinov3_vits16"])
        'Did you mean dinov2_vits14 or dinov3_vits16?'
    """
    names = list(dict.fromkeys(known))
    longer = [one for one in names if len(name) > 1 and one.lower().startswith(name.lower())]
    found = [*longer, *difflib.get_close_matches(name, names, n=3, cutoff=0.5)]
    return f"Did you mean {' or '.join(list(dict.fromkeys(found))[:3])}?" if found else ""


def install(*packages: str) -> str:
    """What to run where packages are missing.

    They are named one by one, and not as an extra of ours, because that works wherever we came
    from: an index, a clone or a copied folder.

    Examples:
        >>> install("onnx", "onnxruntime")
        'Run: pip install onnx onnxruntime'
    """
    return f"Run: pip install {' '.join(packages)}"
