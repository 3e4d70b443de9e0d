"""ONNX in fp16 and int8, compared with the student on images before the file gets its name."""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features import ShapeError
from ..files import replace_files
from ..models.read import ImageInput
from ..words import nearest
from .graph import describe, taken_size, to_onnx
from .int8 import Array, Quantizer

Dtype = Literal["fp16", "int8"]
AGREEMENT = 0.99  # mean cosine to the float32 graph, of class tokens and of patches
_MARGIN = (
    0.002  # above it, on the images on which layers are chosen, which are not the checked ones
)
_TRIED = 16  # images on which layers to keep float are chosen
_HELP = {
    "int8": "Calibrate on more images, and on such as the model will see, or use fp16. A student "
    "that was trained for longer loses less.",
    "fp16": "Its values may leave the range of fp16: stay with float32.",
}
_RUNS, _SECONDS = 30, 3.0  # of the latency, each graph


class Quantized(NamedTuple):
    """A graph of fewer bits, and what it is worth beside the float32 one.

    Attributes:
        path: The file.
        dtype: `fp16` or `int8`.
        cls: Mean cosine of the class tokens of the two graphs.
        patches: The same of the patch tokens; None where the model has none.
        checked: Images of which these are the means.
        calibrated: Other images, from which the ranges of int8 are; 0 for fp16.
        size: Bytes of the file.
        fp32_size: Bytes of the float32 graph.
        latency: Milliseconds an image, median, batch 1, this machine.
        fp32_latency: The same of the float32 graph, measured in turns with it.
        threads: Of both.
        layers: Convolutions and products with weights that could be int8; 0 for fp16.
        kept_float: Names of those that stay float, so that the agreement is reached.

    Examples:
        >>> print(
        ...     Quantized(
        ...         Path("s.onnx"),
        ...         "int8",
        ...         0.9951,
        ...         0.993,
        ...         64,
        ...         128,
        ...         3_900_000,
        ...         13_600_000,
        ...         8.2,
        ...         17.7,
        ...         2,
        ...         49,
        ...         ("conv_stem",),
        ...     )
        ... )
        agreement  class tokens 0.9951, patches 0.9930: mean cosine to float32, 64 images
        calibrated on 128 other images; 1 of 49 layers stays float
        size       3.9 MB, float32 13.6 MB (29 %)
        latency    8.2 ms, float32 17.7 ms: median, batch 1, threads: 2, this machine
    """

    path: Path
    dtype: str
    cls: float
    patches: float | None
    checked: int
    calibrated: int
    size: int
    fp32_size: int
    latency: float
    fp32_latency: float
    threads: int
    layers: int = 0
    kept_float: tuple[str, ...] = ()

    def __str__(self) -> str:
        count = len(self.kept_float)
        kept = f"{count} of {self.layers} layers stay{'s' * (count == 1)} float"
        lines = [
            f"agreement  {_said(self.cls, self.patches)}: mean cosine to float32, "
            f"{self.checked} images",
            *([f"calibrated on {self.calibrated} other images; {kept}"] * (self.dtype == "int8")),
            f"size       {self.size / 1e6:.1f} MB, float32 {self.fp32_size / 1e6:.1f} MB "
            f"({self.size / self.fp32_size:.0%})".replace("%", " %"),
            f"latency    {self.latency:.1f} ms, float32 {self.fp32_latency:.1f} ms: median, batch "
            f"1, threads: {self.threads}, this machine",
        ]
        return "\n".join(lines)


def quantize_onnx(
    model: nn.Module,
    path: str | Path,
    check: Tensor,
    calibration: Tensor | None = None,
    *,
    dtype: Dtype = "int8",
    normalize: bool = False,
    dynamic_size: bool = False,
    opset: int = 18,
    say: Callable[[str], None] = lambda text: None,
) -> Quantized:
    """Write an ONNX graph in fp16 or static int8, as `to_onnx` does in float32.

    Inputs and outputs stay float32: `images` -> `cls`, `patches`, with a dynamic batch. int8 is
    `Quantizer`'s; where all of it misses the mark, the layers that cost the most stay float, at
    most half of them. What is written is run with onnxruntime here and compared with the float32
    graph.

    Args:
        model: A plain timm model, as `load_pretrained` gives it, float32 on the CPU.
        path: File to write.
        check: Images to compare on, RGB, uint8 or float in [0, 1], [N, 3, H, W] at the model's
            size. None of them may be among those that calibrate.
        calibration: Images from which the ranges of int8 are, in the same form, such as the model
            will see; a hundred will do. None for fp16.
        dtype: `fp16`, for accelerators (a CPU computes most of it in float32), or `int8`.
        normalize: As in `to_onnx`; the images given here are [0, 1] or uint8 in either case.
        dynamic_size: As in `to_onnx`; calibrated and compared at the model's size alone.
        opset: ONNX operator set.
        say: Takes sentences for the user about what takes long.

    Returns:
        Agreement, size and latency beside the float32 graph.

    Raises:
        ShapeError: If images have another form.
        ValueError: If a package is missing, an argument would be ignored, or the mean cosine of
            class tokens or of patches is below 0.99; a file that was there before stays.
    """
    _check(model, check, calibration, dtype)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    config = describe(model)
    taken = ImageInput((config["mean"], config["std"]), "quantize_onnx")

    def ready(images: Tensor) -> list[Array]:
        """One by one, as the graph takes them."""
        scaled = images / 255 if images.dtype == torch.uint8 else images.float()
        return [(scaled[i : i + 1] if normalize else taken(scaled[i : i + 1])).numpy()
                for i in range(len(images))]  # fmt: skip

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tmp-export-") as name:
        work, staging = Path(name), Path(name, "whole")
        staging.mkdir()
        graph, file = work / "float32.onnx", staging / path.name
        to_onnx(model, graph, normalize=normalize, dynamic_size=dynamic_size, opset=opset)
        num_layers = 0
        kept: tuple[str, ...] = ()
        if calibration is None:
            _write_fp16(graph, file)
        else:
            images = ready(calibration)
            quantizer = Quantizer(graph, work, images)
            num_layers = len(quantizer.layers)
            spread = images[:: max(1, len(images) // _TRIED)][:_TRIED]
            kept = _write_int8(quantizer, graph, file, spread, say)
        checked = ready(check)
        cls, patches = _compare(_outputs(graph, checked), file, checked)
        if not _lowest(cls, patches) >= AGREEMENT:
            float_ = f" with {len(kept)} of {num_layers} layers float" if kept else ""
            raise ValueError(
                f"export: {dtype}{float_} is too far from the student. Got "
                f"{_said(cls, patches)} as mean cosines on {len(checked)} images; expected at "
                f"least {AGREEMENT}. {_HELP[dtype]}"
            )
        sizes = file.stat().st_size, graph.stat().st_size
        latency, latency_before = _latencies([file, graph], checked[0])
        replace_files(staging, path.parent)
    count = 0 if calibration is None else len(calibration)
    return Quantized(
        path, dtype, cls, patches, len(check), count, *sizes, latency, latency_before,
        torch.get_num_threads(), num_layers, kept,
    )  # fmt: skip


def _check(model: nn.Module, check: Tensor, calibration: Tensor | None, dtype: str) -> None:
    if dtype not in get_args(Dtype):
        raise ValueError(
            f"quantize_onnx: unknown dtype. Got {dtype!r}; expected 'fp16' or 'int8'. "
            f"{nearest(str(dtype), get_args(Dtype))} float32 is to_onnx's."
        )
    if (dtype == "int8") != (calibration is not None):
        raise ValueError(
            "quantize_onnx: calibration= goes with int8. Got "
            + ("fp16 and images, which would be ignored; leave them out." if dtype == "fp16" else
               "int8 without; expected images such as the model will see, a hundred or so.")
        )  # fmt: skip
    size = taken_size(model)
    for name, images in {"check": check, "calibration": calibration}.items():
        if images is None:
            continue
        if images.ndim != 4 or images.shape[1:] != (3, *size) or not len(images):
            raise ShapeError(
                f"quantize_onnx: {name}= has the wrong shape. Got {tuple(images.shape)}; expected "
                f"RGB [N, 3, {size[0]}, {size[1]}], at least one."
            )
        if images.dtype != torch.uint8 and not (
            images.is_floating_point() and images.min() >= -0.01 and images.max() <= 1.01
        ):
            raise ValueError(
                f"quantize_onnx: {name}= has other values. Got {images.dtype} from "
                f"{images.min():.4g} to {images.max():.4g}; expected uint8 or float in [0, 1]. "
                f"Leave normalisation out: it is done here."
            )


def _write_fp16(graph: Path, file: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        # Of each number too small for fp16; whether it matters is compared afterwards.
        warnings.simplefilter("ignore")
        onnx.save(convert_float_to_float16(onnx.load(graph), keep_io_types=True), file)


def _write_int8(
    quantizer: Quantizer,
    graph: Path,
    file: Path,
    images: Sequence[Array],
    say: Callable[[str], None],
) -> tuple[str, ...]:
    """Write the graph in int8, as few layers as needed kept float, and return those."""
    expected = _outputs(graph, images)

    def agreement(count: int) -> float:
        """Of what is written, on some of the images."""
        return _lowest(*_compare(expected[:count], file, images[:count]))

    quantizer.write(file)
    found = agreement(len(images))
    if found >= AGREEMENT + _MARGIN:
        return ()
    layers = quantizer.layers
    say(
        f"int8 throughout agrees to {found:.3f} only. Trying the {len(layers)} layers one by one: "
        f"those that cost the most stay float."
    )
    costs = {}
    for layer in layers:
        quantizer.write(file, keep_float=[other for other in layers if other != layer])
        costs[layer] = 1 - agreement(len(images) // 2 or 1)
    # Large layers are dearer: on EfficientNet-Lite0 the fourth root gave the smallest file.
    order = sorted(layers, key=lambda layer: -costs[layer] / layers[layer] ** 0.25)
    kept: tuple[str, ...] = ()
    count = 1
    while count <= len(layers) // 2:
        kept = tuple(order[:count])
        quantizer.write(file, keep_float=kept)
        if agreement(len(images)) >= AGREEMENT + _MARGIN:
            break
        count += max(1, count // 3)
    return kept


def _outputs(graph: Path, images: Sequence[Array]) -> list[list[Array]]:
    """Class token and patches of each image."""
    session = _open(graph)
    return [session.run(None, {"images": image}) for image in images]


def _compare(
    expected: Sequence[list[Array]], file: Path, images: Sequence[Array]
) -> tuple[float, float | None]:
    """Mean cosines of class tokens and of patches to what the float32 graph gave."""
    cosines: list[list[float]] = [[], []]
    for both in zip(expected, _outputs(file, images), strict=True):
        for kind, pair in enumerate(zip(*both, strict=True)):
            one, other = (torch.from_numpy(tokens) for tokens in pair)
            if one.numel():
                cosines[kind].append(float(F.cosine_similarity(one, other, dim=-1).mean()))
    cls, patches = (statistics.fmean(values) if values else None for values in cosines)
    assert cls is not None
    return cls, patches


def _lowest(cls: float, patches: float | None) -> float:
    return cls if patches is None else min(cls, patches)


def _said(cls: float, patches: float | None) -> str:
    both = [f"class tokens {cls:.4f}"]
    return ", ".join(both if patches is None else [*both, f"patches {patches:.4f}"])


def _open(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _latencies(files: Sequence[Path], image: Array) -> list[float]:
    """Median milliseconds of each, in turns: what else the machine does meets all alike."""
    sessions = [_open(file) for file in files]
    times: list[list[float]] = [[] for _ in files]
    started = time.perf_counter()
    while len(times[0]) < 5 or (
        len(times[0]) < _RUNS and time.perf_counter() - started < _SECONDS * len(files)
    ):
        for session, taken in zip(sessions, times, strict=True):
            before = time.perf_counter()
            session.run(None, {"images": image})
            taken.append((time.perf_counter() - before) * 1e3)
    return [statistics.median(taken[1:]) for taken in times]  # the first run allocates
