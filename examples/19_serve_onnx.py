"""Serve a student without torch: the photographs of a folder that are nearest to one.

Needs onnxruntime, Pillow and numpy, nothing else. On the machine that trained:

    proteus export runs/first --to onnx --dtype int8 --normalize --out student-int8.onnx

and on the device, the second time from the index that the first has written:

    python examples/19_serve_onnx.py student-int8.onnx PHOTOS query.jpg --index photos.npz

Photographs are turned as their EXIF says, and cut as in training: shorter side to the graph's size,
bicubic, then the centre, RGB in [0, 1]. `--normalize` above put mean and std into the graph.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

KINDS = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


class Student:
    """A graph of `proteus export --to onnx --normalize`."""

    def __init__(self, file, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )
        height, width = self.session.get_inputs()[0].shape[2:]
        if not isinstance(height, int):
            raise SystemExit(f"{file} takes any size: export it without --dynamic-size.")
        self.size = (width, height)

    def embed(self, path):
        """The class token of a photograph, of length 1."""
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        image = ImageOps.fit(image, self.size, Image.Resampling.BICUBIC)
        pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)[None] / 255
        token = self.session.run(["cls"], {"images": pixels})[0][0]
        return token / np.linalg.norm(token)


def build_index(student, folder):
    """Names and features of all photographs below a folder."""
    names = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in KINDS)
    if not names:
        raise SystemExit(f"{folder} holds no photographs.")
    return np.array(names), np.stack([student.embed(name) for name in names])


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("graph")
parser.add_argument("photographs", type=Path)
parser.add_argument("query", type=Path)
parser.add_argument("--num", type=int, default=5)
parser.add_argument("--threads", type=int, default=0, help="0 = as many as there are cores")
parser.add_argument("--index", type=Path, help="a file for the features, written if not there")
args = parser.parse_args()

student = Student(args.graph, args.threads)
if args.index and args.index.exists():
    with np.load(args.index) as stored:
        names, features = stored["names"], stored["features"]
else:
    names, features = build_index(student, args.photographs)
    if args.index:
        np.savez(args.index, names=names, features=features)

cosines = features @ student.embed(args.query)
for place in np.argsort(-cosines)[: args.num]:
    print(f"{cosines[place]:.3f}  {names[place]}")
