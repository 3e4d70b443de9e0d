"""Very many shards, opened one after the other: what comes, in which order, and what goes wrong."""

import itertools
import tarfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_shards import jpeg, server, tar  # noqa: F401 - a fixture

from proteus.data import CorruptImageError, ShardLoader, make_loader, open_source, shard_cache
from proteus.data import shards as shards_module
from proteus.data.order import InLanes
from proteus.data.shard_index import known_count, read_index
from proteus.data.shard_plan import ShardPlan, shard_and_place
from proteus.data.shard_source import ShardSource

SIZE = {"batch_size": 4, "image_size": 8, "workers": 0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROTEUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards_module, "_WAIT", 0.01)


def write(folder, counts, broken=()):
    """Shards of so many images each; image n of all is grey level n."""
    folder.mkdir(exist_ok=True)
    grey = itertools.count()
    for shard, count in enumerate(counts):
        members = {f"{n}.jpg": jpeg((next(grey),) * 3) for n in range(count)}
        for place in (place for number, place in broken if number == shard):
            members[f"{place}.jpg"] = b"no image"
        (folder / f"s-{shard:03}.tar").write_bytes(tar(members))
    return open_source(f"wds/{folder}")


def take(source, count, start=0, **options):
    loader = ShardLoader(source, **SIZE | options)
    stream = loader.batches(start)
    found = list(itertools.islice(stream, count))
    stream.close()
    return found


def same(ours, theirs):
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many") / "shards"
    write(folder, [3, 9, 5, 1, 7, 4, 6])
    return folder


def test_the_number_of_workers_changes_nothing(folder):
    source = open_source(f"wds/{folder}")
    whole = take(source, 12, augment="fast")
    assert same(whole, take(source, 12, augment="fast", workers=2))
    assert not same(whole, take(source, 12, augment="fast", seed=1))


@pytest.mark.parametrize("start", [1, 2, 8, 9, 10, 29])
def test_a_stream_that_starts_later_equals_one_that_went_on(folder, start, tmp_path, monkeypatch):
    source = open_source(f"wds/{folder}")
    whole = take(source, 32)
    assert same(whole[start:], take(source, 32 - start, start))
    monkeypatch.setenv("PROTEUS_CACHE", str(tmp_path / "another machine"))
    assert same(whole[start:], take(source, 32 - start, start, workers=1))


@pytest.mark.parametrize("size", [2, 4])
def test_the_whole_batch_is_the_same_for_any_number_of_processes(folder, size):
    source = open_source(f"wds/{folder}")
    whole = take(source, 15)
    options = {"batch_size": 4 // size, "world_size": size}
    parts = [take(source, 15, rank=rank, **options) for rank in range(size)]
    together = [torch.stack(batches, 1).flatten(0, 1) for batches in zip(*parts, strict=True)]
    assert same(whole, together)


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_every_image_comes_once_in_each_epoch(tmp_path_factory, data):
    counts = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    lanes = data.draw(st.integers(1, len(counts)))
    world = data.draw(st.sampled_from([n for n in range(1, lanes + 1) if lanes % n == 0]))
    batch, seed = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 9))
    source = write(tmp_path_factory.mktemp("set"), counts)
    order = InLanes(len(counts), lanes, seed)
    pictures = [(s, n) for s, count in enumerate(counts) for n in range(count)]
    found = {epoch: [] for epoch in range(3)}
    for rank in range(world):
        plan = ShardPlan(
            source, order, batch_size=batch, rank=rank, world_size=world, start=0,
            on_damage=lambda *_: None,
        )  # fmt: skip
        # So long that every lane is past the second epoch, though lanes are not equally long.
        needed = -(-3 * max(counts) * len(counts) // batch) + 1
        for wants in itertools.islice(plan, needed):
            for want in wants:
                if want.key.epoch < 2:
                    found[want.key.epoch].append(shard_and_place(want.key.image))
        plan.close()
    assert sorted(found[0]) == pictures
    assert sorted(found[1]) == pictures


def test_epochs_have_orders_of_their_own_and_without_augmentation_there_is_none(tmp_path):
    source = write(tmp_path / "set", [2, 3, 3])
    plain = torch.cat(take(source, 4, augment="none"))[:, 0, 0, 0].tolist()
    assert plain == [*range(8), *range(8)]
    crops = torch.cat(take(source, 16))[:, 0, 0, 0].reshape(-1, 8).tolist()
    assert len({tuple(epoch) for epoch in crops}) > 4
    order = InLanes(100, 4, seed=3)
    assert [order.shard(place) for place in range(100)] != [(0, n) for n in range(100)]
    assert not torch.equal(order.images(0, 5, 9), order.images(1, 5, 9))


def test_a_corrupt_image_is_replaced_by_its_neighbour_and_noted(tmp_path, caplog):
    source = write(tmp_path / "set", [30, 30], broken=[(1, 4), (1, 5)])
    loader = ShardLoader(source, **SIZE, augment="none")
    images = torch.cat(list(itertools.islice(loader.batches(), 15)))
    assert images[:, 0, 0, 0].tolist() == [*range(34), 36, 36, *range(36, 60)]
    assert sorted(loader.skipped) == ["s-001.tar:4.jpg", "s-001.tar:5.jpg"]
    assert caplog.text.count("skipped a corrupt image") == 2
    workers = take(source, 15, augment="none", workers=2)
    assert torch.equal(torch.cat(workers), images)


def test_too_many_corrupt_images_are_an_error(tmp_path):
    source = write(tmp_path / "some", [20, 20], broken=[(0, 3), (1, 3), (1, 7)])
    with pytest.raises(CorruptImageError, match=r"more than 5% are corrupt. Got 1\d of 200 so far"):
        take(write(tmp_path / "many", [20] * 10, broken=[(n % 10, n) for n in range(20)]), 50)
    take(source, 49)
    source = write(tmp_path / "all", [3, 3], broken=[(0, 0), (0, 1), (0, 2)])
    with pytest.raises(CorruptImageError, match=r"no image of a shard can be decoded. Got 3 in"):
        take(source, 2)


def cut(path):
    path.write_bytes(path.read_bytes()[:1300])


def test_a_damaged_shard_is_left_out_and_noted_and_many_are_an_error(tmp_path, caplog):
    source = write(tmp_path / "set", [2] * 20)
    cut(tmp_path / "set" / "s-007.tar")
    loader = ShardLoader(source, **SIZE, augment="none")
    images = torch.cat(list(itertools.islice(loader.batches(), 10)))[:38, 0, 0, 0].tolist()
    assert images == [*range(14), *range(16, 40)]
    assert list(loader.skipped) == [str(tmp_path / "set" / "s-007.tar")]
    assert "left out a damaged shard" in caplog.text
    assert same(take(source, 20)[11:], take(source, 9, start=11))
    (tmp_path / "set" / "s-011.tar").write_bytes(tar({"0.cls": b"7"}))  # no image: as bad
    with pytest.raises(ValueError, match=r"more than 5% of the shards are damaged. Got 2 of 20"):
        take(source, 20)


def test_a_shard_that_is_gone_is_an_error_that_names_it(tmp_path):
    source = write(tmp_path / "set", [2, 2, 2])
    (tmp_path / "set" / "s-001.tar").unlink()
    with pytest.raises(ValueError, match=r"cannot be opened.*s-001\.tar"):
        take(source, 9)


def test_opening_reads_no_shard(tmp_path, monkeypatch):
    write(tmp_path / "set", [1, 1])
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("a shard was opened"))
    assert len(open_source(f"wds/{tmp_path}/set/s-{{000..001}}.tar").addresses) == 2
    assert len(open_source("wds/https://nowhere.test/s-{000..999}.tar").addresses) == 1000


def test_the_ways_to_name_shards_give_the_same(tmp_path, monkeypatch):
    whole = write(tmp_path / "set", [1, 2, 1]).addresses
    for text in ("set/s-*.tar", "set/s-{000..002}.tar", "set/s-00[012].tar"):
        assert open_source(f"wds/{tmp_path}/{text}").addresses == whole
    (tmp_path / "list.txt").write_text("# three\nset/s-{000..001}.tar\nset/s-002.tar\n")
    assert open_source(f"wds/{tmp_path}/list.txt").addresses == whole
    one, two = f"wds/{whole[0]}", f"wds/{tmp_path}/set/s-00[12].tar"
    both = open_source([one, two])
    assert both.addresses == whole
    assert both.digest == open_source(f"wds/{tmp_path}/set").digest
    assert ShardSource("", ["https://a/x/1.tar?key=2"]).digest == ShardSource("", ["1.tar"]).digest


def test_what_cannot_be_meant_is_refused(folder, tmp_path, monkeypatch):
    for text, reason in {
        "wds/nowhere/a.tar": "no such shard",
        f"wds/{folder}/s-{{005..007}}.tar": r"no such shard. Got .*s-007\.tar",
        f"wds/{tmp_path}": "no shards",
        f"wds/{tmp_path}/no.txt": "list of shards cannot be read",
    }.items():
        with pytest.raises(ValueError, match=reason):
            open_source(text)
    with pytest.raises(ValueError, match="go with nothing else"):
        open_source([f"wds/{folder}", str(folder)])
    with pytest.raises(ValueError, match="is there twice"):
        open_source([f"wds/{folder}", f"wds/{folder}/s-000.tar"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wds").mkdir()
    (tmp_path / "wds" / "a.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="could be two things"):
        open_source("wds/a.tar")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"world_size": 8}, "fewer shards than processes"),
        ({"lanes": 8}, "no such number of lanes"),
        ({"lanes": 3, "world_size": 2}, "no such number of lanes"),
        ({"lanes": 0}, "lanes is out of range"),
        ({"rank": 2, "world_size": 2}, "a rank from 0"),
    ],
)
def test_a_wrong_setting_is_refused(folder, options, reason):
    with pytest.raises(ValueError, match=reason):
        ShardLoader(open_source(f"wds/{folder}"), **SIZE, **options)


def test_the_right_loader_is_made_and_what_it_cannot_do_is_refused(folder):
    source = open_source(f"wds/{folder}")
    assert isinstance(make_loader(source, **SIZE, repeats=1, labels=False), ShardLoader)
    for option in ({"repeats": 3}, {"labels": True}):
        with pytest.raises(ValueError, match="a stream has no"):
            make_loader(source, **SIZE, **option)


def test_an_index_is_of_its_file_alone(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"0.jpg": jpeg(), "1.jpg": jpeg()}))
    index = read_index(str(path), str(path))
    assert known_count(str(path)) == index.count == 2
    kept = next((tmp_path / "cache" / "index").rglob("*.safetensors"))
    whole = kept.read_bytes()
    for damaged in (b"", whole[:-9], b"\xff" * len(whole), whole[:-8] + b"\xff" * 8):
        kept.write_bytes(damaged)
        assert torch.equal(read_index(str(path), str(path)).offsets, index.offsets)
    path.write_bytes(tar({"0.jpg": jpeg()}))
    assert known_count(str(path)) is None
    assert read_index(str(path), str(path)).count == known_count(str(path)) == 1


def test_where_nothing_can_be_kept_all_comes_the_same(folder, tmp_path, monkeypatch, caplog):
    source = open_source(f"wds/{folder}")
    whole = take(source, 9)
    (tmp_path / "a file").write_bytes(b"")
    monkeypatch.setenv("PROTEUS_CACHE", str(tmp_path / "a file"))
    assert same(whole, take(source, 9))
    assert same(whole[5:], take(source, 4, start=5))
    assert caplog.text.count("cannot be kept") == 1


def serve(pages, counts, prefix="/s", size=0):
    """Shards of so many images each on the server; their bytes."""
    grey = itertools.count()
    for shard, count in enumerate(counts):
        images = {f"{n}.jpg": jpeg((next(grey),) * 3) for n in range(count)}
        pages[f"{prefix}-{shard:03}.tar"] = tar(images | {"more.bin": bytes(size)})


def test_shards_on_a_server_give_what_those_on_a_disk_give(server, tmp_path):  # noqa: F811
    url, pages, asked = server
    counts = [3, 9, 5, 1, 7, 4, 6]
    serve(pages, counts)
    source = open_source(f"wds/{url}/s-{{000..006}}.tar")
    assert asked == []
    local = take(write(tmp_path / "set", counts), 20)
    assert same(local, take(source, 20, workers=2))
    assert len(asked) == 7  # each once
    assert same(local[12:], take(source, 8, start=12))
    assert len(asked) == 7


def test_a_cache_stays_within_its_size(server, tmp_path, monkeypatch):  # noqa: F811
    url, pages, asked = server
    serve(pages, [2] * 24, size=100_000)
    one = len(pages["/s-000.tar"])
    monkeypatch.setenv("PROTEUS_CACHE_SIZE", str(6 * one))
    source = open_source(f"wds/{url}/s-{{000..023}}.tar")
    folder = tmp_path / "cache" / "streams"
    most, batches = 0, []
    stream = ShardLoader(source, **SIZE | {"batch_size": 2}, lanes=2).batches()
    for batch in itertools.islice(stream, 48):
        batches.append(batch)
        most = max(most, sum(size for _, size, _ in shard_cache._files(folder)))
    stream.close()
    assert 2 * one <= most <= 6 * one
    assert len(asked) > 30  # two epochs do not fit
    monkeypatch.setenv("PROTEUS_CACHE_SIZE", "1G")
    assert same(batches, take(source, 48, batch_size=2, lanes=2))
    monkeypatch.setenv("PROTEUS_CACHE_SIZE", "much")
    with pytest.raises(ValueError, match=r"no size of a cache. Got PROTEUS_CACHE_SIZE='much'"):
        take(source, 1, start=70)


def test_what_another_process_reads_is_not_removed(server, monkeypatch, caplog):  # noqa: F811
    url, pages, _ = server
    serve(pages, [1] * 3, size=50_000)
    monkeypatch.setenv("PROTEUS_CACHE_SIZE", str(2 * len(pages["/s-000.tar"])))
    ours, theirs = shard_cache.ShardCache(), shard_cache.ShardCache()
    first = theirs.hold(f"{url}/s-000.tar")
    second = theirs.hold(f"{url}/s-001.tar")
    assert ours.hold(f"{url}/s-002.tar", needed=False) is None
    assert "full of shards in use" in caplog.text
    theirs.release(first)
    third = ours.hold(f"{url}/s-002.tar", needed=False)
    held = [shard_cache.Path(shard.file).exists() for shard in (first, second, third)]
    assert held == [False, True, True]
    ours.close()
    theirs.close()


def test_a_server_that_dies_is_an_error_that_names_the_address(server, monkeypatch):  # noqa: F811
    url, pages, asked = server
    serve(pages, [2] * 12)
    source = open_source(f"wds/{url}/s-{{000..011}}.tar")
    stream = ShardLoader(source, **SIZE, lanes=2).batches()
    next(stream)
    before = len(asked)
    pages.clear()
    pages |= {f"/s-{n:03}.tar": 503 for n in range(12)}
    monkeypatch.setattr(shard_cache, "_TRIES", 4)
    with pytest.raises(ValueError, match=rf"cannot be fetched.*503.*'{url}/s-0"):
        list(itertools.islice(stream, 12))
    assert len(asked) >= before + 4  # it was asked again
    serve(pages, [2] * 12)
    assert len(take(source, 12, lanes=2)) == 12


def test_half_a_download_is_fetched_again_and_what_is_no_shard_does_not_stay(
    server,  # noqa: F811
    tmp_path,
):
    url, pages, asked = server
    serve(pages, [2, 2])
    whole = pages["/s-001.tar"]
    pages["/s-001.tar"] = [(whole, True), 429, whole]
    source = open_source(f"wds/{url}/s-{{000..001}}.tar")
    assert len(take(source, 2)) == 2
    assert len(asked) == 4
    pages["/page-000.tar"] = b"<html>log in</html>" * 100
    with pytest.raises(ValueError, match=r"shards are damaged.*page-000\.tar.*no"):
        take(open_source(f"wds/{url}/page-000.tar"), 1)
    assert not list((tmp_path / "cache" / "streams").rglob("page*"))


def test_other_addresses_go_through_fsspec(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    counts = [2, 3]
    source = write(tmp_path / "set", counts)
    for address in source.addresses:
        content = shard_cache.Path(address).read_bytes()
        with fsspec.open(f"memory://set/{shard_cache.Path(address).name}", "wb") as file:
            file.write(content)
    remote = open_source("wds/memory://set/s-{000..001}.tar")
    assert same(take(source, 5), take(remote, 5))
    with pytest.raises(ValueError, match=r"cannot be fetched. Got .*'memory://set/no\.tar'"):
        take(open_source("wds/memory://set/no.tar"), 1)
    with pytest.raises(ValueError, match=r"cannot be fetched.*Protocol not known: nosuch"):
        take(open_source("wds/nosuch://set/no.tar"), 1)


def test_a_plan_holds_no_more_shards_than_it_needs(server, monkeypatch):  # noqa: F811
    url, pages, _ = server
    serve(pages, [2] * 30)
    source = open_source(f"wds/{url}/s-{{000..029}}.tar")
    loader = ShardLoader(source, **SIZE, lanes=3)
    plans = []
    original = ShardPlan.delivered

    def delivered(self, batch):
        original(self, batch)
        plans.append(len(self.cache._held))

    monkeypatch.setattr(ShardPlan, "delivered", delivered)
    stream = loader.batches()
    assert len(list(itertools.islice(stream, 60))) == 60
    stream.close()
    assert max(plans) <= 3 * 2 + 4  # open, ahead, and those of the batch on its way
