"""Images to measure on, where a user has named none."""

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, COUNT = 500, 375, 24


def write_samples(folder: Path) -> str:
    """JPEGs of the usual size of ImageNet's, with soft shapes and grain; what they are, in words.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     said = write_samples(Path(folder))
        ...     len(list(Path(folder).iterdir())), said.startswith("24 generated JPEGs of 500x375")
        (24, True)
    """
    rng, total = np.random.default_rng(0), 0
    for number in range(COUNT):
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        soft = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 8, (HEIGHT, WIDTH, 1))
        pixels = (np.asarray(soft, dtype=np.float32) + grain).clip(0, 255).astype(np.uint8)
        file = folder / f"{number:02}.jpg"
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        total += file.stat().st_size
    return f"{COUNT} generated JPEGs of {WIDTH}x{HEIGHT}, {total / COUNT / 1024:.0f} KB on average"
