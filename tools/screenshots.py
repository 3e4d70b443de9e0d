"""Make the pictures of pages in the docs, with Chromium (Debian's package of this name).

    python tools/screenshots.py RUN EVALUATION

RUN is the folder of a run or demo, EVALUATION of `proteus evaluate --out`; both hold a
`report.html`. Each is shown at 420 pixels, dark, and at 1280, light: the run from its top, the
evaluation from its images on.
"""

import argparse
import io
import tempfile
from pathlib import Path

from browser import Browser
from PIL import Image

IMAGES = Path(__file__).parents[1] / "docs" / "images"
VIEWS = {420: (1150, True), 1280: (950, False)}  # width -> height, dark
LARGEST = 150_000  # bytes
TOP = (
    "[...document.querySelectorAll('h2')].filter(one => one.textContent.startsWith('Mistaken'))"
    ".map(one => one.getBoundingClientRect().top + scrollY)[0] || 0"
)


def main() -> None:
    """Write `docs/images/page-NAME-WIDTH.png` for both pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("evaluation", type=Path, help="folder of an evaluation")
    parser.add_argument("--out", type=Path, default=IMAGES)
    arguments = parser.parse_args()
    with Browser() as browser, tempfile.TemporaryDirectory() as folder:
        for name in ("run", "evaluation"):
            page = getattr(arguments, name) / "report.html"
            for width, (height, dark) in VIEWS.items():
                browser.open(page, width=width, dark=dark)
                raw = Path(folder, "raw.png")
                browser.picture(raw, top=browser.run(TOP), height=height)
                target = arguments.out / f"page-{name}-{width}.png"
                target.write_bytes(_small(Image.open(raw)))
                print(target, target.stat().st_size)


def _small(picture: Image.Image) -> bytes:
    """As PNG, with as many colours as fit."""
    for colours in (256, 128, 64, 32):
        file = io.BytesIO()
        picture.convert("RGB").quantize(colours).save(file, "PNG", optimize=True)
        if file.tell() <= LARGEST:
            break
    return file.getvalue()


if __name__ == "__main__":
    main()
