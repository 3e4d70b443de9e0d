"""`proteus data`: what a source holds, and the paper's proxy sets."""

import argparse
from pathlib import Path
from typing import Any

from .parser import Commands, add_command, add_json, print_json


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    data = add_command(
        commands,
        "data",
        "Say what a source of images holds; build one of the paper's proxy sets from it.",
        "proteus data IMAGES MORE-IMAGES --merge --out merged.json",
    )
    arg = data.add_argument
    arg("paths", nargs="+", help="folder, shards, pattern, https://…, list, hfds/OWNER/NAME")
    arg("--check", action="store_true", help="decode every image and name the corrupt ones")
    arg("--merge", action="store_true", help="all of them, exact duplicates once")
    arg("--sub-data", type=float, metavar="F", help="this fraction of each class")
    arg("--sub-class", type=float, metavar="F", help="this fraction of the classes")
    arg("--labels", type=Path, help="class of each image: last column of each line")
    arg("--seed", type=int, default=0, help="of the fractions (default 0)")
    arg("--out", type=Path, help="write the list of images, for --data of `proteus distill`")
    add_json(data)
    data.set_defaults(run=_run_data)


def _run_data(arguments: argparse.Namespace) -> None:
    from ..data import ShardSource, merge, open_source, sub_class, sub_data
    from ..data.datasets import StreamSource

    fractions = arguments.sub_data, arguments.sub_class
    chosen = [arguments.merge, *(fraction is not None for fraction in fractions)]
    if sum(chosen) > 1:
        raise ValueError("--merge, --sub-data and --sub-class exclude each other. Use --out twice.")
    if arguments.labels and not any(chosen[1:]):
        raise ValueError("--labels would be ignored. It belongs to --sub-data or --sub-class.")
    paths = arguments.paths
    sources = [open_source(path) for path in paths] if arguments.merge else [open_source(paths)]
    streams = [source for source in sources if isinstance(source, ShardSource | StreamSource)]
    if streams and (any(chosen) or arguments.check or arguments.out):
        raise ValueError(
            f"a stream can only be read from its beginning, and has no list, no parts and no end. "
            f"Got {streams[0].description}; expected images that can be asked for one by one."
        )
    source = sources[0]
    found: dict[str, Any] = {}  # in the order in which it is said
    if arguments.merge:
        source, manifest = merge(sources)
        found["merged"] = manifest.to_dict()
    else:
        found["source"] = facts(source)
    if any(chosen[1:]):
        build, fraction = (sub_data, fractions[0]) if chosen[1] else (sub_class, fractions[1])
        labels = _labels(arguments.labels, source) if arguments.labels else None
        source, manifest = build(source, fraction, seed=arguments.seed, labels=labels)
        found["part"] = manifest.to_dict()
    _say(found, arguments.json)
    if arguments.check:
        found["check"] = _check(source)
        _say({"check": found["check"]}, arguments.json)
    if arguments.out:
        source.save_list(arguments.out)
        found["list"] = str(arguments.out)
        _say({"list": found["list"]}, arguments.json)
    if arguments.json:
        print_json(found)


def _labels(path: Path, source: Any) -> list[str]:
    """The last column of each line; of columns before it, one must name the image in that place."""
    from ..files import open_regular

    with open_regular(path) as file:
        lines = [line for line in file.read().decode().splitlines() if line.strip()]
    if lines and lines[0].split() == ["key", "class"]:
        del lines[0]
    for index, line in enumerate(lines[: len(source)]):
        keys, name = line.split()[:-1], source.name(index)
        if keys and not any(Path(key).stem in name for key in keys):
            raise ValueError(
                f"labels: {path} is in another order than the images. Got {' '.join(keys)!r} where "
                f"{name!r} is; expected a line for each image, in the order of the source."
            )
    return [line.split()[-1] for line in lines]


def facts(source: Any) -> dict[str, Any]:
    """What a source holds, JSON-able; `kind` says which of the other entries there are."""
    from collections import Counter

    from ..data import ShardSource
    from ..data.datasets import StreamSource

    if isinstance(source, ShardSource):
        first, last = source.addresses[0], source.addresses[-1]
        return {
            "kind": "streamed shards", "description": source.description,
            "shards": len(source.addresses), "first": first, "last": last,
        }  # fmt: skip
    if isinstance(source, StreamSource):
        return {"kind": "stream", "description": source.description}
    labels = Counter(source.label(i) for i in range(len(source)))
    labels.pop(None, 0)
    return {
        "kind": "images", "description": source.description, "images": len(source),
        "first": source.name(0), "last": source.name(len(source) - 1),
        "classes": {str(label): count for label, count in labels.items()},
        "passed_over": dict(source.passed_over),
    }  # fmt: skip


def describe(source: Any) -> None:
    """Print what a source holds."""
    _say({"source": facts(source)}, False)


def _say(found: dict[str, Any], json: bool) -> None:
    """Print it for people, unless it is to be JSON."""
    for name, value in () if json else found.items():
        if name == "source":
            _say_source(value)
        elif name == "check":
            (width, height), count = value["commonest_size"], value["of_this_size"]
            corrupt = value["corrupt"]
            print(f"  {len(corrupt)} corrupt; {count} of {value['read']} are {width}x{height}")
            for image, reason in corrupt.items():
                print(f"    {image}: {reason}")
        elif name == "list":
            print(f"Wrote {value}: proteus distill --data {value} …")
        else:
            from ..data.proxy import Manifest

            print(Manifest(**value))


def _say_source(found: dict[str, Any]) -> None:
    from ..data.places import count_reasons

    if found["kind"] == "stream":
        print(f"a stream: {found['description']}; its length is not known")
        return
    if found["kind"] == "images":
        print(f"{found['images']} images in {found['description']}")
    else:
        print(f"{found['shards']} shards in {found['description']}, opened when they are read")
    print(f"  from {found['first']} to {found['last']}")
    if sizes := list(found.get("classes", {}).values()):
        print(f"  {len(sizes)} classes of {min(sizes)} to {max(sizes)} images (not used to distil)")
    if others := count_reasons(found.get("passed_over", {})):
        print(f"  {others}")


def _check(source: Any) -> dict[str, Any]:
    """Every image decoded: which are corrupt, and the commonest size."""
    from collections import Counter

    from tqdm import tqdm

    from ..data.decoding import CorruptImageError, decode_pixels

    corrupt: dict[str, str] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    for index in tqdm(range(len(source)), desc="decoding", unit="image", disable=None):
        try:
            sizes[decode_pixels(source.read(index)).shape[:2]] += 1
        except CorruptImageError as error:
            corrupt[source.name(index)] = str(error)
    (height, width), count = sizes.most_common(1)[0] if sizes else ((0, 0), 0)
    return {
        "read": sum(sizes.values()), "corrupt": corrupt,
        "commonest_size": [width, height], "of_this_size": count,
    }  # fmt: skip
