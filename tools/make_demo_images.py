"""Pack the hand-sign photographs that ship inside the package (`proteus/demo/images`).

Sign Language Digits Dataset (Arda Mavi, 2020), Apache-2.0, from `../shared/data`: the whole pack,
resized to 64 px. The folder of a member is its label; training never looks at it.

    python tools/make_demo_images.py --packs ../shared/data --out proteus/demo/images
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

from PIL import Image
from train_demo_teacher import read_pack


def pack(packs: Path, split: str, out: Path) -> int:
    """Write one shard; returns how many images it has."""
    count = 0
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
        for count, (image, label) in enumerate(read_pack(packs / "signdigits10", split), 1):
            buffer = io.BytesIO()
            image.resize((64, 64), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{label}/{count - 1:06d}.jpg")
            member.size = buffer.tell()
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("proteus/demo/images"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        print(name, pack(arguments.packs, name, arguments.out / f"{name}.tar"))
