"""Exports for those who have no timm: transformers, ONNX, torch.export. Each needs only its extra.

`proteus.save_pretrained` writes the format that everything else starts from, timm's.
"""

from .graph import to_onnx, to_torch_export
from .quantized import Quantized, quantize_onnx
from .transformers import to_transformers

__all__ = [
    "Quantized",
    "quantize_onnx",
    "to_onnx",
    "to_torch_export",
    "to_transformers",
]
