"""A float32 ONNX graph in static int8: calibrated ranges, a scale for each channel of the weights.

The graph keeps its float operations between pairs of QuantizeLinear and DequantizeLinear (QDQ),
which a runtime fuses into integer kernels where it has them. `quantize_onnx` decides whether the
result is good enough.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
_LAYERS = ("Conv", "Gemm", "MatMul")  # what has weights
# Between convolutions: what takes and gives 8 bits, so that a run of layers stays in integers.
_CUTS = ("Clip", "Relu")
_BETWEEN = ("Add", "MaxPool", *_CUTS)


class Quantizer:
    """A graph whose ranges are known, from which int8 graphs are made.

    Weights are symmetric int8, each output channel with a scale of its own; activations are uint8
    with a zero point. Products with weights alone are quantised: attention's own stay float, as do
    norms, softmax and, in graphs with a LayerNormalization, sums and what a layer gives, which is
    quantised where the next layer takes it.

    Weights are held in 7 bits but those of depthwise convolutions: processors of the x86 family
    without VNNI add pairs of products in 16 bits, which 8 bits overflow without a word.

    Args:
        graph: ONNX file, float32, with the input `images`.
        folder: Where work files go.
        images: As the graph takes them, [1, 3, H, W] each, to calibrate on.

    Attributes:
        layers: Nodes that can be quantised, by name, and how many weights each has.
    """

    def __init__(self, graph: Path, folder: Path, images: Sequence[Array]) -> None:
        import onnx
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._graph = folder / "prepared.onnx"
        quant_pre_process(graph, self._graph, skip_symbolic_shape=True)
        prepared = onnx.load(self._graph).graph
        nodes = prepared.node
        weights = {tensor.name: math.prod(tensor.dims) for tensor in prepared.initializer}
        self.layers = {
            node.name: weights[node.input[1]]
            for node in nodes
            if node.op_type in _LAYERS and node.input[1] in weights
        }
        self._float = [
            node.name for node in nodes if node.op_type in _LAYERS and node.name not in self.layers
        ]
        self._chained = all(node.op_type != "LayerNormalization" for node in nodes)
        self._types = [*_LAYERS, *(_BETWEEN if self._chained else ())]
        self._depthwise = [
            node.input[1] for node in nodes if node.op_type == "Conv" and _groups(node) > 1
        ]
        calibrator = create_calibrator(
            self._graph,
            self._types,
            augmented_model_path=str(folder / "watched.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Reader(images))
        self._ranges = calibrator.compute_data()
        cuts = {node.output[0]: node.name for node in nodes if node.op_type in _CUTS}
        self._cut_before = {
            node.name: cuts[node.input[0]] for node in nodes if node.input and node.input[0] in cuts
        }
        for node in nodes:
            if node.op_type in _CUTS and node.input[0] in self._ranges:
                # What is cut off behind it needs no room in the range: of ReLU6, 0 to 6 alone.
                self._ranges[node.input[0]] = self._ranges[node.output[0]]

    def write(self, path: Path, *, keep_float: Collection[str] = ()) -> None:
        """An int8 graph in which some layers stay float."""
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        options: dict[str, Any] = {
            "TensorQuantOverrides": {
                name: [{"axis": 0, "quant_type": QuantType.QInt8, "reduce_range": False}]
                for name in self._depthwise
            },
        }
        if not self._chained:
            options["OpTypesToExcludeOutputQuantization"] = [*_LAYERS]
        # Quantising to what they leave replaces them, but a float layer needs them.
        cuts = [self._cut_before[name] for name in keep_float if name in self._cut_before]
        quantizer = QDQQuantizer(
            onnx.load(self._graph),
            True,  # per channel
            True,  # 7 bits
            QuantType.QInt8,
            QuantType.QUInt8,
            self._ranges,
            [],
            [*self._float, *keep_float, *cuts],
            self._types,
            options,
        )
        quantizer.quantize_model()
        model = quantizer.model.model
        _feed_floats(model.graph, keep_float)
        onnx.save(model, path)


class _Reader:
    """Images one by one, as the calibrator asks for them."""

    def __init__(self, images: Sequence[Array]) -> None:
        self._left: Iterator[Array] = iter(images)

    def get_next(self) -> dict[str, Array] | None:
        image = next(self._left, None)
        return None if image is None else {"images": image}


def _feed_floats(graph: Any, names: Collection[str]) -> None:
    """Give layers that stay float what was there before it was quantised.

    Between a DequantizeLinear and a QuantizeLinear, onnxruntime quantises their weights by itself,
    with one scale for all channels.
    """
    maker = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        back = maker.get(node.input[0]) if node.name in names else None
        if back is not None and back.op_type == "DequantizeLinear":
            node.input[0] = maker[back.input[0]].input[0]
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        for node in [n for n in graph.node if n.op_type == kind and n.output[0] not in used]:
            graph.node.remove(node)
        used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}


def _groups(node: Any) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)
