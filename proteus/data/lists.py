"""Lists of images: a path on each line, or a source that was saved."""

import json
import os
from pathlib import Path

from .places import ImageSource, Place


def open_list(file: str) -> ImageSource:
    base = os.path.dirname(os.path.abspath(file))
    # Names are bytes to the system, and a Windows editor puts a mark before the first one.
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as handle:
        names = [line.strip() for line in handle]
    names = [name for name in names if name and not name.startswith("#")]
    places = [Place(os.path.join(base, name), name) for name in names]
    missing = [place.name for place in places if not os.path.isfile(place.file)]
    if missing or not places:
        raise ValueError(
            f"images: {file!r} lists files that are not there. Got {len(missing)} of "
            f"{len(places)}, such as {missing[:3]}; expected paths relative to {base!r}, one on "
            f"each line."
        )
    return ImageSource(file, places)


def open_saved(file: str) -> ImageSource:
    try:
        content = json.loads(Path(file).read_text())
        description, places = content["description"], [Place(*row) for row in content["places"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"images: {file!r} is no list of images. Got {type(error).__name__}: {error}; expected "
            f"a file of ImageSource.save_list or `proteus data --out`."
        ) from error
    missing = [
        name for name in sorted({place.file for place in places}) if not os.path.isfile(name)
    ]
    if missing or not places:
        raise ValueError(
            f"images: {file!r} lists what is not there. Got {len(places)} images, {len(missing)} "
            f"files missing, such as {missing[:3]}; make the list again where the images are now."
        )
    return ImageSource(f"{description} ({file})", places)
