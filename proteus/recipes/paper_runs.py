"""Every training run of the paper, as functions that return a `Recipe`.

Each has two presets. `paper` follows the words: DeiT's recipe with stochastic depth and spared
positions, iBOT's block masks, batch 1024. `official` follows the authors' code: no stochastic
depth, everything decayed that has two dimensions, random masks on the first half of the batch, the
learning rate moved once an epoch and one epoch late, fp16, an average that is kept and never used,
batch 512, and ImageNet's statistics for CLIP too.

Source:
    Proteus (ICLR 2025), sections 3 and A; `pretrain/main.py`, `pretrain/run_pretrain.sh`.
    *Different:* neither preset has CutMix, Mixup or label smoothing, which the authors' code lost;
    the precision of `paper` is bf16, where the paper says nothing. The runs of Tables 11 and 12
    follow DeiT, which has all three, so their scores are not quite what these recipes give. The
    paper does not say how their teachers teach: here as DeiT's do, and as in the first row of
    Table 1, by hard logits and labels. Rows of the tables that other people trained (DINOv2,
    CLIP, SynCLR, iBOT, DeiT from RegNetY) have no recipe.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from ..heads import Design
from ..paper import paper_scores
from ..settings import Optimizer
from .recipe import Data, Logits, Loss, Masks, Models, Preset, Recipe, Science

_STUDENTS = {"ti": "tiny", "s": "small", "b": "base", "l": "large"}
_TOKEN_ONLY = Loss(token=1.0, feature=0.0, patch=0.0)
_ITERATIONS = 375_000  # of 1024 images, in section 3.5


def _pair(student: str, teacher: str) -> str:
    # the paper's spelling: S, B and L, but g
    big = teacher if teacher == "g" else teacher.upper()
    return f"ViT-{student.capitalize()}/14 from DINOv2-{big}/14"


def dinov2(
    student: str, teacher: str, preset: Preset = "paper", *, name: str = "", about: str = ""
) -> Recipe:
    """A student of DINOv2 under the paper's default protocol.

    Args:
        student: Size: `ti`, `s`, `b` or `l`.
        teacher: Size: `s`, `b`, `l` or `g`.
        preset: See the module.
        name: Of the recipe; "" = made of the sizes.
        about: Sentence about it.
    """
    official = preset == "official"
    # 256 images for ViT-L "due to GPU memory constraints", with the learning rate that goes with it
    batch = 256 if student == "l" else 512 if official else 1024
    science = Science(
        model=Models(
            teacher=f"dinov2_vit{teacher}14",
            student=f"vit_{_STUDENTS[student]}_patch14",
            drop_path=0.0 if official else 0.1,
            image_size=224,
        ),
        masks=Masks() if official else Masks("block", ratio=(0.1, 0.5)),
        data=Data(
            augment="official" if official else "fast", repeats=3, batch_size=batch, epochs=300
        ),
        optimizer=Optimizer(
            lr=5e-4 * batch / 512,
            undecayed=() if official else None,
            schedule="official" if official else "deit",
            ema=0.99996 if official else None,
            precision="fp16" if official else "bf16",
        ),
    )
    return Recipe(
        name or f"{student}14-dinov2-{teacher}14",
        preset,
        about or f"{_pair(student, teacher)} (section 3.3)",
        science,
    )


def _change(base: Recipe, **science: Any) -> Recipe:
    """The recipe with parts of its science changed, and what the paper reports for it."""
    changed = replace(base.science, **science)
    return replace(base, science=changed, scores=paper_scores(base.name))


def synclr(preset: Preset = "paper") -> Recipe:
    """ViT-B/14 from SynCLR-L/14, all three terms (section 3.4, Fig. 4)."""
    base = dinov2(
        "b", "l", preset, name="b14-synclr-l14",
        about="ViT-B/14 from SynCLR-L/14 (section 3.4); needs science.model.teacher_checkpoint",
    )  # fmt: skip
    model = replace(base.science.model, teacher="synclr_vitl14", student="vit_base_patch14_synclr")
    return _change(base, model=model)


def clip(preset: Preset = "paper") -> Recipe:
    """ViT-B/14 from CLIP-L/14, class token only (section 3.4, Fig. 5)."""
    official = preset == "official"
    base = dinov2(
        "b", "l", preset, name="b14-clip-l14",
        about="ViT-B/14 from CLIP-L/14, class token only (section 3.4)",
    )  # fmt: skip
    model = replace(
        base.science.model,
        teacher="clip_vitl14",
        student="vit_base_patch14_clip",
        # The authors feed CLIP ImageNet's statistics, in training.
        statistics="imagenet" if official else "own",
    )
    # OpenAI's class token is a vector, which the authors' rule therefore spares.
    undecayed = ("cls_token",) if official else None
    optimizer = replace(base.science.optimizer, undecayed=undecayed)
    return _change(base, model=model, loss=_TOKEN_ONLY, masks=Masks(), optimizer=optimizer)


def clip_merge(preset: Preset = "paper") -> Recipe:
    """CLIP-L/14 on the merged proxy set (A.4, Table 15)."""
    base = replace(
        clip(preset),
        name="table15-clip-merge",
        about="ViT-B/14 from CLIP-L/14 on ImageNet-Merge (A.4, Table 15)",
    )
    return _change(base, data=_iterations(base.science.data, "merge"))


def table1(kind: str, preset: Preset = "paper") -> Recipe:
    """Conventional distillation of logits, with and without labels (Table 1).

    Args:
        kind: `hard-kl-ce`, `soft-kl-ce`, `hard-kl`, `soft-kl`, or `hint` (features, token only).
        preset: See the module.
    """
    name, about = f"table1-{kind}", f"ViT-S/14 from DINOv2-B/14 by {_TABLE1[kind]} (Table 1)"
    base = dinov2("s", "b", preset, name=name, about=about)
    if kind == "hint":
        return _change(base, masks=Masks(), loss=_TOKEN_ONLY)
    with_labels = kind.endswith("-ce")
    logits = Logits(
        classifier="dinov2_vitb14_linear_head.pth",
        kl=0.5 if with_labels else 1.0,
        ce=0.5 if with_labels else 0.0,
        hard=kind.startswith("hard"),
    )
    return _change(base, masks=Masks(), logits=logits)


_TABLE1 = {
    "hard-kl-ce": "hard logits and labels",
    "soft-kl-ce": "soft logits and labels",
    "hard-kl": "hard logits",
    "soft-kl": "soft logits",
    "hint": "its class token",
}
_TABLE2 = (
    "token", "feature", "patch", "token-feature", "token-patch", "feature-patch",
    "token-feature-patch",
)  # fmt: skip


def table2(terms: str, preset: Preset = "paper") -> Recipe:
    """One combination of the three terms (Table 2; the paper has four of the seven).

    Args:
        terms: Such as `token-feature`.
        preset: See the module.
    """
    chosen = terms.split("-")
    base = dinov2(
        "s", "b", preset, name=f"table2-{terms}",
        about=f"ViT-S/14 from DINOv2-B/14 with {' and '.join(chosen)} (Table 2)",
    )  # fmt: skip
    token, feature, patch = (float(t in chosen) for t in ("token", "feature", "patch"))
    loss = Loss(token=token, feature=feature, patch=patch)
    masks = base.science.masks if "patch" in chosen else Masks()
    return _change(base, loss=loss, masks=masks)


def proxy(name: str, preset: Preset = "paper") -> Recipe:
    """Another proxy set in place of ImageNet-1K (Table 10, Figs. 6 and 7).

    Args:
        name: A key of the table below.
        preset: See the module.
    """
    kind, what = _PROXIES[name]
    base = dinov2("s", "b", preset, name=name, about=f"ViT-S/14 from DINOv2-B/14 on {what}")
    return _change(base, data=_iterations(base.science.data, kind))


_PROXIES = {
    "table10-imagenet": ("all", "ImageNet-1K (Table 10)"),
    "table10-merge": ("merge", "ImageNet-Merge, 1.4 M images (Table 10)"),
    "table10-single": ("single:1200000", "views of a single image (Table 10)"),
    "fig6-classes-50": ("sub-class:0.5", "half of ImageNet's classes (Fig. 6)"),
    "fig6-classes-20": ("sub-class:0.2", "a fifth of ImageNet's classes (Fig. 6)"),
    "fig7-data-50": ("sub-data:0.5", "half of each class (Fig. 7)"),
    "fig7-data-20": ("sub-data:0.2", "a fifth of each class (Fig. 7)"),
}


def _iterations(data: Data, proxy: str) -> Data:
    """As many images as in section 3.5, whatever the set's size and the batch."""
    return replace(data, proxy=proxy, epochs=None, images=_ITERATIONS * 1024)


def table13(preset: Preset = "paper") -> Recipe:
    """A student that starts from a uniform selection of its teacher's weights (A.2, Table 13)."""
    base = dinov2(
        "s", "b", preset, name="table13-s14-inherit",
        about=f"{_pair('s', 'b')}, inheriting its weights uniformly (Table 13)",
    )  # fmt: skip
    model = replace(base.science.model, init="select")
    return _change(base, model=model)


def inherit(name: str, preset: Preset = "paper") -> Recipe:
    """Weight inheritance under supervision, with and without a teacher's logits (Tables 11, 12).

    Args:
        name: One of those below. Where labels alone teach, the teacher is what the student
            inherits from, or unused.
        preset: See the module.
    """
    deit, inherits, teaches = name.startswith("table11"), "inherit" in name, "labels" not in name
    teacher = "deit_small_patch16_224.fb_in1k" if deit else "dinov2_vits14"
    ours, theirs = ("DeiT-Ti/16", "DeiT-S/16") if deit else ("ViT-Ti/14", "DINOv2-S/14")
    about = [f"from {theirs} by hard logits and labels" if teaches else "by labels alone"]
    about += [f"inheriting weights of {theirs} uniformly"] if inherits else []
    base = dinov2(
        "ti", "s", preset, name=name,
        about=f"{ours} {', '.join(about)} (Table {11 if deit else 12})",
    )  # fmt: skip
    model = replace(
        base.science.model,
        teacher=teacher,
        student="deit_tiny_patch16_224" if deit else base.science.model.student,
        init="select" if inherits else "random",
    )
    logits = Logits(kl=0.0, ce=1.0)
    if teaches:
        head = "deit_small_patch16_224-cd65a155.pth" if deit else "dinov2_vits14_linear_head.pth"
        logits = Logits(classifier=head, kl=0.5, ce=0.5, hard=True)
    return _change(base, model=model, masks=Masks(), logits=logits)


_INHERIT = tuple(
    f"{model}{labels}{inherited}"
    for model in ("table11-ti16", "table12-ti14")
    for labels in ("", "-labels")
    for inherited in ("", "-inherit")
)


def table18(teacher: str, preset: Preset = "paper") -> Recipe:
    """ViT-S/14 from teachers of several sizes (A.7, Table 18)."""
    base = dinov2(
        "s", teacher, preset, name=f"table18-from-{teacher}14",
        about=f"{_pair('s', teacher)} (Table 18)",
    )  # fmt: skip
    return _change(base)


def table20(design: str, preset: Preset = "paper") -> Recipe:
    """Designs of the projection head, class token only (A.9, Table 20)."""
    base = dinov2(
        "s", "b", preset, name=f"table20-{design}",
        about=f"ViT-S/14 from DINOv2-B/14, class token only, head {design} (Table 20)",
    )  # fmt: skip
    return _change(base, loss=replace(_TOKEN_ONLY, head=_TABLE20[design]), masks=Masks())


_TABLE20: Mapping[str, Design] = {
    "linear-gelu": "linear_gelu",
    "gelu-linear": "gelu_linear",
    "ln-linear": "ln_linear",
}


def _scored(student: str, teacher: str, preset: Preset) -> Recipe:
    return _change(dinov2(student, teacher, preset))


RUNS: Mapping[str, Callable[[Preset], Recipe]] = MappingProxyType(
    {
        "ti14-dinov2-s14": partial(_scored, "ti", "s"),
        "s14-dinov2-b14": partial(_scored, "s", "b"),
        "b14-dinov2-l14": partial(_scored, "b", "l"),
        "l14-dinov2-g14": partial(_scored, "l", "g"),
        "b14-synclr-l14": synclr,
        "b14-clip-l14": clip,
        **{f"table1-{kind}": partial(table1, kind) for kind in _TABLE1},
        **{f"table2-{terms}": partial(table2, terms) for terms in _TABLE2},
        **{name: partial(proxy, name) for name in _PROXIES},
        **{name: partial(inherit, name) for name in _INHERIT},
        "table13-s14-inherit": table13,
        "table15-clip-merge": clip_merge,
        **{f"table18-from-{size}14": partial(table18, size) for size in ("g", "l", "b")},
        **{f"table20-{design}": partial(table20, design) for design in _TABLE20},
    }
)
