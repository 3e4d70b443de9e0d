"""A model as a graph: ONNX and torch.export, compared with the model before it gets its name."""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..files import replace_files
from ..models.read import reader_for
from ..weights.description import Statistics
from ..weights.positions import is_resizable
from ..words import install

TOLERANCE = 1e-4  # of a graph against the model, largest difference; of values above 1, relative


def to_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    normalize: bool = False,
    dynamic_size: bool = False,
    opset: int = 18,
) -> Path:
    """Write an ONNX graph: `images` [B, 3, H, W] -> `cls` [B, D], `patches` [B, N, D].

    The batch is dynamic. The graph is run with onnxruntime and compared with the model before the
    file gets its name.

    Args:
        model: A plain timm model, as `load_pretrained` gives it, float32 on the CPU.
        path: File to write.
        normalize: False = the graph takes what the model takes, normalised images; True = RGB in
            [0, 1], the model's mean and std being part of the graph.
        dynamic_size: Let height and width vary too, in whole patches; positions are then resampled
            in the graph, by timm's rule. False = the model's size.
        opset: ONNX operator set.

    Returns:
        The file.

    Raises:
        ValueError: If the extra is missing, or the graph differs from the model by more than 1e-4,
            relative to the largest value where that is above 1.
    """
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if find_spec(n) is None]
    if missing:
        raise ValueError(f"to_onnx: {', '.join(missing)} not installed. {install(*missing)}")

    def write(wrapped: nn.Module, images: Tensor, shapes: dict[int, Any], file: Path) -> None:
        program = torch.onnx.export(
            wrapped,
            (images,),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=["images"],
            output_names=["cls", "patches"],
            opset_version=opset,
            verbose=False,
        )
        assert program is not None
        program.save(file)

    def run(file: Path, images: Tensor) -> list[Tensor]:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]

    return _export(
        model, Path(path), normalize=normalize, dynamic_size=dynamic_size, write=write, run=run
    )


def to_torch_export(
    model: nn.Module, path: str | Path, *, normalize: bool = False, dynamic_size: bool = False
) -> Path:
    """Write a `torch.export` program (`.pt2`), which `torch.export.load` runs without timm.

    Args:
        model: A plain timm model, as `load_pretrained` gives it, float32 on the CPU.
        path: File to write.
        normalize: As in `to_onnx`.
        dynamic_size: As in `to_onnx`.

    Returns:
        The file.

    Raises:
        ValueError: If the program differs from the model by more than 1e-4, relative to
            the largest value where that is above 1.
    """

    def write(wrapped: nn.Module, images: Tensor, shapes: dict[int, Any], file: Path) -> None:
        program = torch.export.export(wrapped, (images,), dynamic_shapes=(shapes,))
        torch.export.save(program, file)

    def run(file: Path, images: Tensor) -> list[Tensor]:
        return list(torch.export.load(file).module()(images))

    return _export(
        model, Path(path), normalize=normalize, dynamic_size=dynamic_size, write=write, run=run
    )


class _Outputs(nn.Module):
    """A model with `Features` as two plain tensors, class token and patch tokens."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, statistics: Statistics | None) -> None:
        super().__init__()
        self.model = model
        self.read = reader_for(model)
        self.normalizes = statistics is not None
        mean, std = statistics or ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalizes:
            images = (images - self.mean) / self.std
        features = self.read(self.model, images)
        return features.cls, features.patches


def _export(
    model: nn.Module,
    path: Path,
    *,
    normalize: bool,
    dynamic_size: bool,
    write: Callable[[nn.Module, Tensor, dict[int, Any], Path], None],
    run: Callable[[Path, Tensor], list[Tensor]],
) -> Path:
    """Write beside the target, compare with the model, and only then move into place."""
    config = describe(model)
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in model.parameters()):
        raise ValueError(
            "export: the model must be float32 on the CPU. Use model.float().cpu(); convert the "
            "written graph to other types afterwards."
        )
    size = taken_size(model)
    shapes: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *size, generator=rng)
    batches = [images, images[:1], images.repeat(2, 1, 1, 1)[:3]]
    if dynamic_size:
        shapes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        model = _any_size(model, config)
        step = model.patch_embed.patch_size if is_resizable(model) else (32, 32)
        batches.append(torch.rand(1, 3, size[0] + step[0], size[1] + 2 * step[1], generator=rng))
    statistics = (config["mean"], config["std"]) if normalize else None
    wrapped = _Outputs(model.eval(), statistics).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".tmp-export-") as name,
        torch.no_grad(),
    ):
        file = Path(name, path.name)
        write(wrapped, images, shapes, file)
        for batch in batches:
            pairs = list(zip(run(file, batch), wrapped(batch), strict=True))
            # Convolutional networks give values of any size, whose last digits differ.
            worst = max(
                float((a - b).abs().max() / b.abs().max().clamp(min=1))
                for a, b in pairs
                if b.numel()
            )
            if not worst <= TOLERANCE:
                raise ValueError(
                    f"export: the file does not compute what the model does. Got a difference of "
                    f"{worst:.2g} of the largest value on images {tuple(batch.shape)}; expected at "
                    f"most {TOLERANCE}. Try another opset or a fixed size."
                )
        replace_files(Path(name), path.parent)
    return path


def describe(model: nn.Module) -> dict[str, Any]:
    """What a timm model says of itself.

    Raises:
        ValueError: If it says nothing.
    """
    config: dict[str, Any] = dict(vars(model).get("pretrained_cfg") or {})
    if "mean" not in config or "architecture" not in config:
        raise ValueError(
            f"export: the model does not say what it is. Got {type(model).__name__} without timm's "
            f"pretrained_cfg; expected a timm model, such as load_pretrained(FOLDER)."
        )
    return config


def taken_size(model: nn.Module) -> tuple[int, int]:
    """Height and width of the images that a graph of the model takes, pixels."""
    height, width = describe(model).get("input_size", (3, 224, 224))[1:]
    return _image_size(model) or (height, width)


def _image_size(model: nn.Module) -> tuple[int, int] | None:
    """The size a transformer is built for."""
    return cast("Any", model).patch_embed.img_size if is_resizable(model) else None


def _any_size(model: nn.Module, config: dict[str, Any]) -> nn.Module:
    """The same model, rebuilt so that it takes images of any size."""
    import timm

    if not is_resizable(model):
        return model
    arguments = {**vars(model).get("_model_args", {}), "num_classes": 0, "dynamic_img_size": True}
    arguments["img_size"] = _image_size(model)
    free = timm.create_model(config["architecture"], pretrained=False, **arguments)
    free.load_state_dict(model.state_dict())
    return free
