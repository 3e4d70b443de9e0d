"""The images of a recipe: its proxy set, and how long a run on them is."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from ..data import (
    ImageLoader,
    ImageSource,
    ShardLoader,
    StreamLoader,
    make_loader,
    merge,
    open_source,
    single_image,
    sub_class,
    sub_data,
)
from ..data.places import count_reasons
from ..data.proxy import digest_of
from ..training import World
from .recipe import Recipe, Science, proxy_of

Loader = ImageLoader | ShardLoader | StreamLoader


def open_images(recipe: Recipe, world: World, say: Callable[[str], None]) -> Any:
    """The images of a recipe.

    Raises:
        ValueError: If there are none, or the batch cannot be shared evenly.
    """
    data = recipe.science.data
    if not data.paths:
        raise ValueError("recipe: no images. Set science.data.paths (--data).")
    if data.batch_size % (world.size * recipe.machine.accumulate):
        raise ValueError(
            f"recipe: the batch cannot be shared evenly. Got science.data.batch_size="
            f"{data.batch_size}, {world.size} processes and machine.accumulate="
            f"{recipe.machine.accumulate}; expected a multiple of "
            f"{world.size * recipe.machine.accumulate}."
        )
    source = _source(recipe, say)
    return _apart(source, data.hold_out)[1] if data.hold_out else source


def open_held_out(recipe: Recipe) -> tuple[ImageSource, ImageSource]:
    """The images that `science.data.hold_out` keeps out of the run, and those it trains on."""
    data = recipe.science.data
    assert data.hold_out is not None
    return _apart(_source(recipe, lambda text: None), data.hold_out)


def _apart(source: Any, count: int) -> tuple[ImageSource, ImageSource]:
    """So many images, evenly spaced, and the others."""
    if not isinstance(source, ImageSource):
        raise ValueError(
            f"recipe: a stream's images cannot be kept out of a run. Got science.data.hold_out="
            f"{count} for {source.description}; name other images to look at (--watch)."
        )
    if count >= len(source):
        raise ValueError(
            f"recipe: no image would be left to train on. Got science.data.hold_out={count} of "
            f"{len(source)} images in {source.description}; expected fewer."
        )
    held = [place * len(source) // count for place in range(count)]
    others = sorted({*range(len(source))} - {*held})
    return (
        source.select(held, f"{count} of {source.description}"),
        source.select(others, f"{source.description} without {count} images"),
    )


def open_data(
    recipe: Recipe,
    world: World,
    say: Callable[[str], None],
    source: Any = None,
    *,
    image_size: int | None = None,
) -> Loader:
    """The loader of this process.

    Args:
        recipe: With an image size.
        world: The processes.
        say: Takes what a proxy set holds.
        source: The images, where `open_images` was called before.
        image_size: Pixels of the images, see `Distiller.image_size`; None = the recipe's.

    Raises:
        ValueError: If there are no images, or the batch cannot be shared evenly.
    """
    data, size = recipe.science.data, image_size or recipe.science.model.image_size
    if size is None:
        raise ValueError("recipe: no image size. Set science.model.image_size (--image-size).")
    logits = recipe.science.logits
    labels = {"labels": True} if logits is not None and logits.ce else {}
    return make_loader(
        open_images(recipe, world, say) if source is None else source,
        batch_size=data.batch_size // world.size,
        image_size=size,
        seed=recipe.science.seed,
        augment=data.augment,
        repeats=data.repeats,
        workers=recipe.machine.workers,
        rank=world.rank,
        world_size=world.size,
        device=world.device,
        **labels,
    )


def _source(recipe: Recipe, say: Callable[[str], None]) -> Any:
    data, seed = recipe.science.data, recipe.science.seed
    kind, number = proxy_of(data.proxy)
    if kind == "all":
        source = open_source(list(data.paths))
        _tell(source, say)
        return source
    if kind == "single":
        if len(data.paths) != 1:
            raise ValueError(f"recipe: single:N goes with one image. Got {len(data.paths)} paths.")
        source, manifest = single_image(data.paths[0], int(number or 0), seed=seed)
    elif kind == "merge":
        source, manifest = merge([_images(path) for path in data.paths])
    else:
        build_part = sub_data if kind == "sub-data" else sub_class
        source, manifest = build_part(_images(list(data.paths)), number or 0.0, seed=seed)
    say(str(manifest))
    _tell(source, say)
    return source


def _tell(source: Any, say: Callable[[str], None]) -> None:
    """What was found and is not used."""
    if isinstance(source, ImageSource) and (others := count_reasons(source.passed_over)):
        say(f"{len(source)} images in {source.description}. Passed over {others}.")


def _images(paths: str | list[str]) -> ImageSource:
    """Images that can be asked for one by one."""
    source = open_source(paths)
    if not isinstance(source, ImageSource):
        raise ValueError(
            f"recipe: a proxy set cannot be made of a stream. Got {paths!r}; expected images in "
            f"files, or science.data.proxy='all'."
        )
    return source


def count_steps(science: Science, data: Loader) -> int:
    """Optimizer steps of a recipe on these images."""
    length = science.data
    if length.steps is not None:
        return length.steps
    if length.images is not None:
        return max(1, round(length.images / length.batch_size))
    if length.epochs is None:
        raise ValueError(
            "recipe: no length. Set one of science.data.epochs, steps and images "
            "(--epochs, --steps, --images)."
        )
    return max(1, round(length.epochs * batches_of_an_epoch(data)))


def batches_of_an_epoch(data: Loader) -> int:
    """Batches of a pass; a stream has none."""
    if not isinstance(data, ImageLoader):
        raise ValueError(
            "recipe: a stream has no length. Set science.data.steps or images in place of epochs, "
            "and science.optimizer.schedule='cosine'."
        )
    return len(data)


def passed_over_by(data: Loader) -> dict[str, int]:
    """Why files beside the images were passed over, and how many; nothing for a stream."""
    return Counter(data.source.passed_over.values()) if isinstance(data, ImageLoader) else {}


def facts_of(data: Loader) -> dict[str, Any]:
    """Which images these are; which shards, where they are streamed; nothing for other streams."""
    if isinstance(data, ShardLoader):
        source = data.source
        return {
            "shards": len(source.addresses), "digest": source.digest, "lanes": data.lanes
        }  # fmt: skip
    if isinstance(data, StreamLoader):
        return {}
    return {"count": len(data.source), "digest": digest_of(data.source)}
