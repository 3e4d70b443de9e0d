"""One small model of each timm family as teacher and as student; writes docs/families.md.

python tools/model_families.py                # all, some minutes
python tools/model_families.py levit mvitv2   # these families, printed
python tools/model_families.py layers         # what the layers of some models give, printed
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

import proteus
from proteus.evaluation import as_extractor

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
# The smallest of each module of `timm.models`; at the size given, else at 128 pixels where the
# model takes it. The largest families are cut to two blocks.
EXAMPLES: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", None, {"depth": 2}),
    "byoanet": ("halonet_h1", None, {}),
    "byobnet": ("test_byobnet", 128, {}),
    "cait": ("cait_xxs24_224", None, {}),
    "coat": ("coat_tiny", None, {}),
    "convit": ("convit_tiny", None, {}),
    "convmixer": ("convmixer_768_32", 128, {}),
    "convnext": ("test_convnext", 128, {}),
    "cpubone": ("cpubone_nano", 128, {}),
    "crossvit": ("crossvit_tiny_240", None, {}),
    "csatv2": ("csatv2", None, {}),
    "cspnet": ("cs3darknet_focus_s", 128, {}),
    "cspnext": ("cspnext_tiny", 128, {}),
    "davit": ("davit_tiny", 128, {}),
    "deepseek_vit": ("deepseek_vit_412m", 126, {"depth": 2}),
    "deit": ("deit_tiny_patch16_224", None, {}),
    "densenet": ("densenet121", 128, {}),
    "dla": ("dla46x_c", 128, {}),
    "dpn": ("dpn48b", 128, {}),
    "edgenext": ("edgenext_xx_small", 128, {}),
    "efficientformer": ("efficientformer_l1", None, {}),
    "efficientformer_v2": ("efficientformerv2_s0", None, {}),
    "efficientnet": ("test_efficientnet", 128, {}),
    "efficientvim": ("efficientvim_m1", 128, {}),
    "efficientvit_mit": ("efficientvit_b0", 128, {}),
    "efficientvit_msra": ("efficientvit_m0", None, {}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", None, {}),
    "fasternet": ("fasternet_t0", 128, {}),
    "fastvit": ("fastvit_t8", 128, {}),
    "focalnet": ("focalnet_tiny_srf", 128, {}),
    "gcvit": ("gcvit_xxtiny", None, {}),
    "gemma4_vit": ("gemma4_vit_167m", 128, {"depth": 2}),
    "ghostnet": ("ghostnet_050", 128, {}),
    "hardcorenas": ("hardcorenas_b", 128, {}),
    "hgnet": ("hgnetv2_b0", 128, {}),
    "hiera": ("hiera_tiny_224", None, {}),
    "hieradet_sam2": ("sam2_hiera_tiny", 128, {}),
    "hrnet": ("hrnet_w18_small", 128, {}),
    "iformer": ("iformer_t", 128, {}),
    "inception_next": ("inception_next_atto", 128, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 128, {}),
    "inception_v3": ("inception_v3", 128, {}),
    "inception_v4": ("inception_v4", 128, {}),
    "lcnetv2": ("lcnetv2_small", 128, {}),
    "levit": ("levit_128s", None, {}),
    "lowformer": ("lowformer_b0", 128, {}),
    "mambaout": ("test_mambaout", 128, {}),
    "maxxvit": ("test_coatnet", None, {}),
    "metaformer": ("poolformerv2_s12", 128, {}),
    "mlp_mixer": ("gmlp_ti16_224", None, {}),
    "mobilenetv3": ("lcnet_035", 128, {}),
    "mobilenetv5": ("mobilenetv5_base", 128, {}),
    "mobilevit": ("mobilevit_xxs", 128, {}),
    "mvitv2": ("mvitv2_tiny", None, {}),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", 128, {"depth": 2}),
    "nasnet": ("nasnetalarge", 128, {}),
    "nest": ("nest_tiny", None, {}),
    "nextvit": ("nextvit_small", 128, {}),
    "nfnet": ("test_nfnet", 128, {}),
    "pit": ("pit_ti_224", None, {}),
    "pnasnet": ("pnasnet5large", 128, {}),
    "pvt_v2": ("pvt_v2_b0", 128, {}),
    "qwen3_vit": ("qwen3_vit_88m", 128, {"depth": 2}),
    "rdnet": ("rdnet_tiny", 128, {}),
    "regnet": ("regnetx_002", 128, {}),
    "repghost": ("repghostnet_050", 128, {}),
    "repvit": ("repvit_m1", 128, {}),
    "res2net": ("res2next50", 128, {}),
    "resnest": ("resnest14d", 128, {}),
    "resnet": ("test_resnet", 128, {}),
    "resnetv2": ("resnetv2_18", 128, {}),
    "rexnet": ("rexnet_100", 128, {}),
    "selecsls": ("selecsls42", 128, {}),
    "senet": ("legacy_seresnet18", 128, {}),
    "sequencer": ("sequencer2d_s", None, {}),
    "shvit": ("shvit_s1", 128, {}),
    "sknet": ("skresnet18", 128, {}),
    "starnet": ("starnet_s050", 128, {}),
    "swiftformer": ("swiftformer_xs", None, {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", None, {}),
    "swin_transformer_v2": ("swinv2_tiny_window16_256", None, {}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", None, {}),
    "tiny_vit": ("tiny_vit_5m_224", 128, {}),
    "tnt": ("tnt_s_legacy_patch16_224", None, {}),
    "tresnet": ("tresnet_m", 128, {}),
    "twins": ("twins_svt_small", None, {}),
    "vgg": ("vgg11", 128, {}),
    "visformer": ("visformer_tiny", None, {}),
    "vision_transformer": ("test_vit", None, {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", None, {}),
    "vision_transformer_relpos": ("test_vit_relpos", None, {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", None, {"depth": 2}),
    "vitamin": ("vitamin_small_224", None, {}),
    "volo": ("volo_d1_224", None, {}),
    "vovnet": ("ese_vovnet19b_slim_dw", 128, {}),
    "xception": ("legacy_xception", 128, {}),
    "xception_aligned": ("xception41p", 128, {}),
    "xcit": ("xcit_nano_12_p8_224", None, {}),
}
START = """# Every timm family

The smallest model of each family (the modules of `timm.models`), as
`python tools/model_families.py` found it with timm {version}; a test repeats it.

* **as teacher**: *yes*; *vector* where there is no token for each patch, so that only the token
  term can be used.
* **as student**: *yes* where `timm.create_model("local-dir:…", pretrained=True)(x)` of the exported
  student equals `student(x).cls`, and a gradient reaches every trainable parameter.
* **terms**: of the loss, with which it can be trained.
* **masks**: how patches are hidden from it, found by changing the pixels of hidden ones: *tokens*
  (a learned token in place of their embeddings) or *pixels* (a learned colour in the image itself,
  for every model whose stem looks at its neighbours); *no* where there are no patches.

| family | example | as teacher | as student | terms | masks | why not |
| --- | --- | --- | --- | --- | --- | --- |
"""

LAYERED = (
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224",
)
LAYERS = """
## Patches of chosen layers

`Teacher(..., layers=)` and `Student(..., layers=)` take patches from other places than the output:
the blocks of a transformer, the stages of a CNN or a hierarchical one, by their numbers, from 0 on
or negative from the end.

```python
import proteus

teacher = proteus.Teacher("resnet18", pretrained=False, layers=-2)  # stride 16
student = proteus.Student("mobilenetv3_small_050", layers=(-3, -2))
assert student.grid == (28, 28)
assert (student.embed_dim, student.patch_dim) == (1024, 16 + 24)

student = proteus.Student("mobilenetv3_small_050", layers=-2)
loss = proteus.ProteusLoss(student.width, teacher.width, patch=0)
distiller = proteus.Distiller(teacher, student, loss)
```

```shell
proteus distill --teacher T --teacher-layers -2 --student S --student-layers -2 -1 …
```

Several layers meet on the grid of the finest one: coarser ones are brought there bilinearly, and
all are put side by side in the order given. `cls` stays the model's own vector, one forward gives
both, and what leaves is the plain model, which returns that vector; its card and `config.json`
(`proteus.layers`) say which layers were distilled, and `Student("local-dir:FOLDER", layers=…)`
gives them again. A layer's number follows timm's `forward_intermediates`; -1 is the output, as
without `layers`: a CNN's last stage with what stands behind it. Blocks of a transformer go through
its final norm. A model that does not tell its layers is refused; wrap it in a module that returns
`Features` with the patches you want.

Extractors return the patches of the chosen layers, so PCA maps and agreement see them. Protocols
that choose layers themselves keep their own: the four layers of segmentation and depth, the blocks
of the linear protocol.

Grid and width at 224 pixels by layer, as `python tools/model_families.py layers` found them with
timm {version}; a test repeats it.

"""


class Row(NamedTuple):
    """What was found of one family."""

    family: str
    example: str
    teacher: str
    student: str = "no"
    terms: str = ""
    masks: str = "no"
    why: str = ""

    def line(self) -> str:
        """The row as Markdown."""
        return f"| {' | '.join(self)} |"


def examine(family: str) -> Row:
    """Try one family; anything but success or a `ValueError` of ours is raised."""
    name, size, arguments = EXAMPLES[family]
    shown = f"`{name}`" + "".join(f", {key}={value}" for key, value in arguments.items())
    torch.manual_seed(0)
    try:
        teacher = proteus.Teacher(_model(name, arguments), pretrained=False, image_size=size)
    except ValueError as error:
        return Row(family, shown, "no", why=_short(error))
    _check_features(teacher)
    found = "yes" if teacher.grid[0] else "vector"
    try:
        student = proteus.Student(_model(name, arguments), image_size=teacher.image_size)
    except ValueError as error:
        return Row(family, shown, found, why=_short(error))
    terms = ["token", *["feature"] * bool(student.grid[0]), *["patch"] * bool(student.hides)]
    for weights in ({}, dict.fromkeys(terms[1:], 0)):
        _check_gradients(
            teacher, student, {"feature": 0, "patch": 0} | dict.fromkeys(terms, 1) | weights
        )
    _check_export(student)
    why = "" if student.hides else _short(student.cannot_hide())
    return Row(family, shown, found, "yes", ", ".join(terms), student.hides or "no", why)


def _model(name: str, arguments: dict[str, Any]) -> Any:
    return timm.create_model(name, num_classes=0, **arguments) if arguments else name


def _short(error: ValueError | str) -> str:
    """The part of a message that says what is so."""
    text = " ".join(str(error).split())
    said = re.search(r"Got (?:'[^']*', )?(.*?); expected", text)
    return (said.group(1) if said else text).removeprefix("which ").replace("|", "/")


def _check_features(model: proteus.Teacher) -> None:
    """The shapes of the contract, and each patch in its place."""
    height, width = model.image_size
    images = torch.rand(2, 3, height, width)
    first = model(images)
    rows, columns = first.grid
    assert first.cls.shape == (2, model.embed_dim), first.cls.shape
    assert first.patches.shape == (2, rows * columns, model.embed_dim), first.patches.shape
    assert first.cls.isfinite().all()
    output: Any = model.backbone.forward_features(model.inputs(images))
    if not isinstance(output, torch.Tensor) or output.ndim != 3 or min(first.grid) < 2:
        return  # a map shows its places
    for top, left in ((True, False), (False, True)):
        other = images.clone()
        corner = (
            other[..., : height // 4, -width // 4 :]
            if top
            else other[..., -height // 4 :, : width // 4]
        )
        corner.copy_(1 - corner)
        change = (model(other).patches - first.patches).norm(dim=-1).mean(0).view(rows, columns)
        if change.max() < 1.2 * change.min():
            return  # random weights mix everything
        there = change[0, -1] if top else change[-1, 0]
        opposite = change[-1, 0] if top else change[0, -1]
        assert there > opposite, (top, left, change)


def _check_gradients(teacher: Any, student: proteus.Student, weights: dict[str, float]) -> None:
    loss = proteus.ProteusLoss(student.width, teacher.width, **weights)
    distiller = proteus.Distiller(teacher, student, loss).train()
    distiller(torch.rand(2, 3, *student.image_size)).total.backward()
    missing = [n for n, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, missing
    assert sum(p.requires_grad for p in student.backbone.parameters()) > 1
    distiller.zero_grad()


@torch.no_grad()
def _check_export(student: proteus.Student) -> None:
    student.eval()
    images = torch.rand(2, 3, *student.image_size)
    with tempfile.TemporaryDirectory() as folder:
        proteus.save_pretrained(student, folder)
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(
        plain(student.inputs(images)), student(images).cls, rtol=1e-5, atol=1e-5
    )


def page(rows: list[Row]) -> str:
    """docs/families.md."""
    start = START.format(version=timm.__version__)
    return start + "".join(row.line() + "\n" for row in rows) + layers_section()


def layers_section() -> str:
    """What single layers of some models give, from the last one back."""
    columns = [_layers(name) for name in LAYERED]
    rows = [["layer", *LAYERED], ["---"] * (len(LAYERED) + 1)]
    for back in range(1, max(map(len, columns)) + 1):
        cells = [column[-back] if back <= len(column) else "" for column in columns]
        rows.append([str(-back), *cells])
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return LAYERS.format(version=timm.__version__) + table


def _layers(name: str) -> list[str]:
    """Grid and width of each layer; of a transformer's equal blocks only the last."""
    model = timm.create_model(name, num_classes=0)
    found: list[str] = []
    for number in range(as_extractor(model).num_layers):
        one = proteus.Teacher(model, image_size=224, layers=number)
        found.append(f"{one.grid[0]}×{one.grid[1]}, {one.patch_dim}")
    return found if len({*found}) > 1 else [f"{found[0]} (all {len(found)})"]


def main() -> None:
    """Write the page, or print the rows of some families."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["layers"]:
        print(layers_section())
        return
    rows = []
    for family in sys.argv[1:] or EXAMPLES:
        rows.append(examine(family))
        print(rows[-1].line(), flush=True)
    if not sys.argv[1:]:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
