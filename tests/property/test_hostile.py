"""300 hostile inputs: each ends soon, in the right answer or in a plain error.

Inputs are made from a seed: what they are changes with nothing but this file. What is right is
known for each kind: the state that was saved, the images that were written, the features without a
cache.
"""

import io
import json
import math
import os
import random
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import proteus
from conftest import vit
from proteus import cli
from proteus.data import CorruptImageError, ImageLoader, decode, open_source
from proteus.evaluate import extract_features
from proteus.files import flatten
from proteus.recipes import Recipe, read_recipe, to_json, with_settings
from proteus.training import checkpoint, fit

EACH = 22  # of 14 kinds
SECONDS = 20
# What a value may be where another is expected.
ODD = [
    None, True, False, 0, 1, -1, 2**63, -(10**30), 0.5, -0.0, math.nan, math.inf, -math.inf, 1e308,
    "", "x", "0", "nan", "../../etc", "\0", "é\u202e", [], [1], {}, {"a": 1}, [[]], [None],
]  # fmt: skip


@pytest.fixture(autouse=True)
def _soon():
    """Nothing may hang."""

    def ring(number, frame):
        raise AssertionError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def plain(call):
    """What a call gives, or None where it ends in a plain error; others pass through and fail."""
    try:
        return call()
    except (ValueError, OSError, ArithmeticError) as error:
        text = str(error)
        assert len(text) > 20, f"an error that says nothing: {error!r}"
        return None


def nested(depth):
    return "[" * depth + "]" * depth


def damage(rng, data, start=0):
    """Bytes with a fault: cut, filled, moved, or some of them changed."""
    if not data:
        return b"\0"
    kind = rng.choice(["flip", "bytes", "cut", "zeros", "double", "empty", "noise", "tail"])
    at = rng.randrange(min(start, len(data) - 1), len(data))
    changed = bytearray(data)
    if kind == "flip":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.randint(1, 20)):
            changed[rng.randrange(start, len(data))] = rng.randrange(256)
    elif kind == "cut":
        del changed[at:]
    elif kind == "zeros":
        end = min(len(data), at + rng.randint(1, 600))
        changed[at:end] = bytes(end - at)
    elif kind == "double":
        changed[at:at] = data[at : at + rng.randint(1, 600)]
    elif kind == "empty":
        changed.clear()
    elif kind == "noise":
        changed[:] = rng.randbytes(len(data))
    else:
        changed += rng.randbytes(rng.randint(1, 600))
    return bytes(changed)


def odd_json(rng, value):
    """JSON text in which one thing is of another shape."""
    if rng.random() < 0.15:
        return rng.choice(["", "{", nested(10_000), "\ufeff{}", "NaN", '{"step": 1e999}', "[" * 9])
    value = json.loads(json.dumps(value))
    places = []

    def walk(part, path):
        places.append(path)
        inner = (
            part.items()
            if isinstance(part, dict)
            else enumerate(part)
            if isinstance(part, list)
            else ()
        )
        for key, child in inner:
            walk(child, (*path, key))

    walk(value, ())
    path = rng.choice(places)
    if not path:
        return json.dumps(rng.choice(ODD))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    act = rng.random()
    if act < 0.2:
        del holder[path[-1]]
    elif act < 0.3 and isinstance(holder, dict):
        holder[rng.choice(["extra", "../x", "", "__class__"])] = rng.choice(ODD)
    else:
        holder[path[-1]] = rng.choice(ODD)
    return json.dumps(value)


def picture(rng, width=40, height=24):
    pixels = np.frombuffer(rng.randbytes(width * height * 3), np.uint8)
    return Image.fromarray(pixels.reshape(height, width, 3))


def encoded(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def images_in(folder, rng, count=12):
    folder.mkdir()
    for n in range(count):
        (folder / f"{n:02}.png").write_bytes(encoded(picture(rng), "PNG"))
    return folder


def image_bytes(rng, folder):
    kind = rng.choice(["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP", "PPM"])
    data = encoded(picture(rng), kind)
    if rng.random() < 0.2:
        data = (
            rng.choice([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b""])
            + data
        )
    else:
        data = damage(rng, data)
    try:
        found = decode(data)
    except CorruptImageError as error:
        assert str(error)
    else:
        assert found.mode == "RGB"


def image_folder(rng, folder):
    """Every good image is used; every other thing is told."""
    images_in(folder / "set", rng)
    good = {p.name for p in (folder / "set").iterdir()}
    odd = (
        folder
        / "set"
        / rng.choice(["x.jpg", "x.PNG", "x.tif", "ü\u202e.jpg", "-x.png", "a\nb.jpg"])
    )
    act = rng.randrange(7)
    if act == 0:
        os.mkfifo(odd)
    elif act == 1:
        odd.mkdir()
    elif act == 2:
        odd.symlink_to(rng.choice(["/dev/zero", "nowhere", ".", "/etc"]))
    elif act == 3:
        odd.write_bytes(b"")
    elif act == 4:
        odd.write_bytes(b"%!PS\nshowpage\n")
    elif act == 5:
        odd.write_bytes(damage(rng, encoded(picture(rng), "JPEG")))
    else:
        odd.write_bytes(rng.randbytes(500))
        odd.chmod(0)
    source = open_source(str(folder / "set"))
    names = {source.name(n) for n in range(len(source))}
    assert good <= names
    loader = ImageLoader(source, batch_size=4, image_size=8, augment="none", workers=0)
    # One in thirteen is more than the share of corrupt ones that a run accepts.
    batches = plain(lambda: list(loader))
    if batches is None:
        return
    told = set(loader.skipped) | set(source.passed_over)
    assert names - good <= told or act == 5 or odd.name in names


def shard(rng, folder):
    """Images of a damaged shard are those that were written, or something is said."""
    path = folder / "a.tar"
    written = {}
    with tarfile.open(path, "w") as tar:
        for n in range(8):
            data = encoded(picture(rng, 12, 8), "PNG")
            written[f"{n}.png"] = data
            member = tarfile.TarInfo(f"{n}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    path.write_bytes(damage(rng, path.read_bytes()))
    source = plain(lambda: open_source(str(path)))
    if source is None:
        return
    names = {source.name(n).rpartition(":")[2] for n in range(len(source))}
    assert names == set(written) or source.passed_over
    for n in range(len(source)):
        plain(lambda n=n: decode(source.read(n)))


def saved_list(rng, folder):
    images_in(folder / "set", rng, 4)
    path = folder / "list.json"
    open_source(str(folder / "set")).save_list(path)
    path.write_text(odd_json(rng, json.loads(path.read_text())), errors="surrogatepass")
    source = plain(lambda: open_source(str(path)))
    if source is not None:
        for n in range(len(source)):
            data = plain(lambda n=n: source.read(n))
            assert data is None or len(data) < 10_000


def saved_state(rng, folder):
    """A damaged checkpoint is never taken for a whole one: it is the newest, or the one before."""
    weights = {"weights": {"a": torch.randn(4, 3)}, "optimizer": {"b": torch.randn(5)}}
    for step in (2, 4):
        checkpoint.save(
            folder, step, weights, settings={"lr": 0.1, "n": [1]}, facts={"x": {"y": step}}
        )
    target = rng.choice(sorted((folder / "checkpoint" / "step-00000004").iterdir()))
    if target.name == "state.json" and rng.random() < 0.7:
        target.write_text(odd_json(rng, json.loads(target.read_text())), errors="surrogatepass")
    else:
        target.write_bytes(damage(rng, target.read_bytes()))
    found = plain(lambda: checkpoint.load(folder))
    assert found is not None, "the checkpoint before is whole"
    assert found.step in (2, 4)
    assert (found.settings, found.facts) == ({"lr": 0.1, "n": [1]}, {"x": {"y": found.step}})
    assert torch.equal(found.tensors["weights"]["a"], weights["weights"]["a"])
    assert torch.equal(found.tensors["optimizer"]["b"], weights["optimizer"]["b"])


def run_json(rng, folder):
    """A recipe that is read is the one that stands there: nothing in it is ignored."""
    text = odd_json(rng, to_json(Recipe()))
    (folder / "run.json").write_text(text, errors="surrogatepass")
    found = plain(lambda: read_recipe(folder))
    if found is None:
        return
    given = json.loads(text)
    given = given.get("recipe", given)

    def held(part, by):
        for key, value in part.items():
            if isinstance(value, dict) and isinstance(by[key], dict):
                held(value, by[key])
            else:
                assert json.dumps(by[key]) == json.dumps(value) or by[key] == value

    held(given, to_json(found))


def setting(rng, folder):
    """`--set PATH=VALUE` is taken as it is, or refused."""
    paths = list(flatten(to_json(Recipe())))
    path, value = rng.choice([*paths, "science", "machine.", "", "a.b"]), rng.choice(ODD)
    found = plain(lambda: with_settings(Recipe(), {path: value}))
    if found is not None:
        assert value in (None, {}) or flatten(to_json(found)).get(path) == value


FIT = {
    "steps": [1.5, math.nan, -1, 0, "2", True, None, 2**70],
    "lr": [math.nan, math.inf, -1.0, "x", None, -0.0],
    "weight_decay": [math.nan, -1, "x", math.inf],
    "warmup": [math.nan, 1, -0.1, "x"],
    "clip_grad": [0, -1, math.nan, "x"],
    "ema": [-1, 1.5, math.nan, "x"],
    "accumulate": [0, -1, 1.5, 3, "x", None],
    "seed": ["x", 1.5, None],
    "precision": ["fp8", None, 16],
    "save_every": [0, -1, 1.5, "x"],
    "keep": [0, -1, 1.5],
    "parallel": ["dp", None],
    "device": ["quantum", "", "cuda:99", "cpu:7x", 3],
    "epochs": [math.inf, math.nan, -1, 0, "x"],
}


def fit_setting(rng, folder):
    torch.manual_seed(0)
    teacher = proteus.Teacher(vit(12, depth=1), image_size=32)
    distiller = proteus.Distiller(teacher, proteus.Student(vit(12, depth=1), image_size=32))
    name = rng.choice(sorted(FIT))
    value = rng.choice(FIT[name])
    options = {"steps": 1, "device": "cpu", "progress": False, "out": folder / "run", name: value}
    if name == "epochs":
        del options["steps"]
    rows = plain(lambda: fit(distiller, [torch.rand(2, 3, 32, 32)], **options))
    if rows is None:
        assert not (folder / "run").exists() or (folder / "run" / "log.jsonl").exists()
    else:
        assert all(math.isfinite(row["total"]) for row in rows)
        assert len(rows) == 1


_EXPORT = {}


def exported(folder):
    """A small export, made once, and what it gives."""
    if not _EXPORT:
        torch.manual_seed(0)
        student = proteus.Student("test_vit", image_size=160)
        kept = folder / "export"
        proteus.save_pretrained(student, kept)
        _EXPORT["files"] = {p.name: p.read_bytes() for p in kept.iterdir()}
        images = torch.rand(1, 3, 160, 160)
        _EXPORT["images"] = images
        with torch.no_grad():
            _EXPORT["output"] = proteus.load_pretrained(kept)(images)
        shutil.rmtree(kept)
    target = folder / "model"
    target.mkdir()
    for name, data in _EXPORT["files"].items():
        (target / name).write_bytes(data)
    return target


def weights(rng, folder):
    """Weights that load are those that were saved."""
    target = exported(folder)
    file = target / "model.safetensors"
    tensors = load_file(file)
    key = rng.choice(sorted(tensors))
    act = rng.randrange(8)
    if act == 0:
        tensors[key] = torch.full_like(tensors[key], rng.choice([math.nan, math.inf]))
    elif act == 1:
        del tensors[key]
    elif act == 2:
        tensors["extra." + key] = torch.zeros(2)
    elif act == 3:
        tensors[key] = tensors[key][None].clone()
    elif act == 4:
        tensors[key] = tensors[key].to(rng.choice([torch.int32, torch.bool, torch.uint8]))
    elif act == 5:
        tensors[key].view(-1)[rng.randrange(tensors[key].numel())] = math.nan
    if act < 6:
        save_file(tensors, file)
    else:  # the header: what the tensors are called and where they lie
        data = file.read_bytes()
        size = 8 + int.from_bytes(data[:8], "little")
        file.write_bytes(damage(rng, data[:size]) + data[size:])
    model = plain(lambda: proteus.load_pretrained(target))
    if model is not None:
        with torch.no_grad():
            assert torch.equal(model(_EXPORT["images"]), _EXPORT["output"])


def config(rng, folder):
    """A model that loads is built as the file says."""
    target = exported(folder)
    file = target / "config.json"
    file.write_text(odd_json(rng, json.loads(file.read_text())), errors="surrogatepass")
    model = plain(lambda: proteus.load_pretrained(target))
    if model is not None:
        with torch.no_grad():
            assert torch.isfinite(model(_EXPORT["images"])).all()
    teacher = plain(lambda: proteus.Teacher(f"local-dir:{target}"))
    if teacher is not None:
        size = teacher.image_size
        assert torch.isfinite(teacher(torch.rand(1, 3, *size)).cls).all()


def feature_cache(rng, folder):
    """Damaged features are never used."""
    images = images_in(folder / "set", rng, 10)
    for n, file in enumerate(sorted(images.iterdir())):
        (images / str(n % 2)).mkdir(exist_ok=True)
        file.rename(images / str(n % 2) / file.name)
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 5, 4, stride=4)

    def run():
        return extract_features(
            model, str(images), image_size=8, batch_size=1, workers=0, cache=folder / "cache"
        )

    right = run()
    for file in [p for p in (folder / "cache").rglob("*") if p.is_file()]:
        file.write_bytes(damage(rng, file.read_bytes()))
    found = run()
    assert torch.equal(found.cls, right.cls)
    assert torch.equal(found.labels, right.labels)


def quiet_main(words):
    """The command line's answer: 0 or 2, never a traceback."""
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    assert code in (0, 2), code
    return code


def run_page(rng, folder):
    """A page is made of a damaged run, or it is said why not."""
    rows = [
        {"step": n, "total": 3.0 / (n + 1), "token": 1.0, "lr": 0.1, "grad_norm": 1.0}
        for n in range(9)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files = {"log.jsonl": text, "run.json": json.dumps({"recipe": to_json(Recipe())}).encode()}
    files["timing.jsonl"] = (
        json.dumps({"step": 8, "images_per_second": 9.0, "seconds": 3.0}).encode() + b"\n"
    )
    name = rng.choice(sorted(files))
    if name == "run.json":
        files[name] = odd_json(rng, json.loads(files[name])).encode(errors="surrogatepass")
    elif rng.random() < 0.5:
        lines = files[name].splitlines()
        at = rng.randrange(len(lines))
        lines[at] = odd_json(rng, json.loads(lines[at])).encode(errors="surrogatepass")
        files[name] = b"\n".join(lines) + b"\n"
    else:
        files[name] = damage(rng, files[name])
    for file, data in files.items():
        (folder / file).write_bytes(data)
    quiet_main(["report", str(folder)])


WORDS = [
    "distill", "evaluate", "report", "data", "export", "convert", "push", "recipes", "info",
    "visualize", "distil", "--data", "--out", "--teacher", "--student", "--steps", "--set",
    "--resume", "--image-size", "demo-teacher", "vit_tiny_patch16_224", "dinov2", "nan",
    "-1", "0", "1e9", "",
    "../..", "/dev/null", "science.loss.patch=x", "--device", "quantum", "--recipe", "s14",
    "--suite", "knn,", "ü", "--help",
]  # fmt: skip


def words(rng, folder):
    here = Path.cwd()
    os.chdir(folder)
    try:
        chosen = [rng.choice(WORDS[:11]), *rng.choices(WORDS, k=rng.randint(0, 6))]
        quiet_main(chosen)
    finally:
        os.chdir(here)


def tensors(rng, folder):
    """Images that are no images are refused by teacher, student and step, on every call."""
    torch.manual_seed(0)
    student = proteus.Student(vit(12, depth=1), image_size=32)
    distiller = proteus.Distiller(proteus.Teacher(vit(12, depth=1), image_size=32), student)
    good = torch.rand(2, 3, 32, 32)
    bad = rng.choice([
        good[0], good[:, :1], good * 255, good - 0.5, good * math.nan, good.long(), good > 0.5,
        good.to(torch.complex64), good.permute(0, 2, 3, 1), torch.rand(2, 3, 31, 33),
        good * math.inf, torch.rand(2, 3, 64, 64), torch.rand(2, 3, 0, 0),
        (good * 255).to(torch.int16),
    ])  # fmt: skip
    hidden = rng.choice([
        torch.zeros(2, 15, dtype=torch.bool), torch.zeros(2, 16),
        torch.zeros(1, 16, dtype=torch.bool), torch.zeros(2, 16, dtype=torch.long),
        torch.zeros(16, dtype=torch.bool),
    ])  # fmt: skip
    larger = bad.shape == (2, 3, 64, 64)  # which a step resizes
    for call in (student, distiller.teacher, *[distiller] * (not larger)):
        assert plain(lambda call=call: call(bad)) is None
    for call in (student, distiller):
        assert plain(lambda call=call: call(good, hidden)) is None


KINDS = [
    image_bytes, image_folder, shard, saved_list, saved_state, run_json, setting, fit_setting,
    weights, config, feature_cache, run_page, words, tensors,
]  # fmt: skip


@pytest.mark.parametrize("number", range(EACH))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_hostile_input_gives_the_right_answer_or_a_plain_error(kind, number, tmp_path):
    kind(random.Random(f"{kind.__name__} {number}"), tmp_path)
