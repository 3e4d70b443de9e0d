import io
import os
import socket
import tarfile

import pytest
from PIL import Image

from proteus.data import CorruptImageError, open_source, sub_data
from proteus.data.places import count_reasons
from proteus.data.sources import EXTENSIONS


def jpeg(colour=(200, 10, 10), size=(20, 16)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def names(source):
    return [source.name(i) for i in range(len(source))]


def test_a_folder_tree_is_searched_in_order_whatever_the_case_of_extensions(tmp_path):
    for name in ("b/2.JPG", "a/x/1.jpeg", "0.jpg", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg())
    source = open_source(tmp_path)
    assert names(source) == ["0.jpg", "a/x/1.jpeg", "b/2.JPG"]
    assert source.read(1) == jpeg()


def test_shards_give_images_and_pass_over_labels_and_label_maps(tmp_path):
    first, second = jpeg((1, 2, 3)), jpeg((9, 8, 7))
    members = {
        "0.jpg": first,
        "0.cls": b"3",
        "1.jpg": second,
        "1.seg.png": b"x",
        "./d/2.png": first,
    }
    source = open_source(shard(tmp_path / "a.tar", members))
    assert names(source) == ["a.tar:0.jpg", "a.tar:1.jpg", "a.tar:./d/2.png"]
    assert [source.read(i) for i in range(3)] == [first, second, first]


def test_a_folder_of_shards_a_pattern_and_a_list_give_the_same(tmp_path):
    paths = [shard(tmp_path / f"t-{i}.tar", {f"{i}.jpg": jpeg()}) for i in range(3)]
    expected = ["t-0.tar:0.jpg", "t-1.tar:1.jpg", "t-2.tar:2.jpg"]
    for path in (tmp_path, f"{tmp_path}/t-*.tar", paths):
        assert names(open_source(path)) == expected


def test_members_that_are_no_files_or_point_outside_are_never_unpacked(tmp_path):
    path = shard(tmp_path / "a.tar", {"../../evil.jpg": jpeg(), "ok.jpg": jpeg()})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = open_source(path)
    assert names(source) == ["a.tar:ok.jpg"]
    assert source.passed_over["a.tar:../../evil.jpg"] == "its name leads out of the archive"
    source.read(0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


def test_loops_of_links_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jpg").write_bytes(jpeg())
    (tmp_path / "a/back").symlink_to(tmp_path, target_is_directory=True)
    assert len(open_source(tmp_path)) == 1


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.tar"])
def test_a_missing_path_is_named(tmp_path, path):
    with pytest.raises(ValueError, match=r"no such folder or file.*nowhere"):
        open_source(tmp_path / path)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match="holds nothing"):
        open_source(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds 1 \.txt"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match="empty list"):
        open_source([])


def test_images_beside_shards_are_ambiguous(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    shard(tmp_path / "a.tar", {"0.jpg": jpeg()})
    with pytest.raises(ValueError, match=r"1 images and 1 \.tar"):
        open_source(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_not_passed_over(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(ValueError, match="closed"):
        open_source(tmp_path)


def test_truncated_compressed_and_false_shards_are_named(tmp_path):
    path = shard(tmp_path / "cut.tar", {f"{i}.jpg": os.urandom(3000) for i in range(5)})
    path.write_bytes(path.read_bytes()[:9000])
    with tarfile.open(tmp_path / "zip.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("0.jpg"), io.BytesIO())
    (tmp_path / "text.tar").write_text("<html>not here</html>" * 100)
    for name in ("cut.tar", "zip.tar", "text.tar"):
        with pytest.raises(ValueError, match=name):
            open_source(tmp_path / name)
    with pytest.raises(ValueError, match="none found in the shard"):
        open_source(shard(tmp_path / "labels.tar", {"0.cls": b"1"}))


@pytest.mark.parametrize("damage", ["header", "cut in a header"])
def test_images_behind_damage_are_never_lost_silently(tmp_path, damage):
    path = shard(tmp_path / "a.tar", {f"{i}.jpg": jpeg() for i in range(6)})
    with tarfile.open(path) as tar:
        at = tar.getmembers()[3].offset
    data = bytearray(path.read_bytes())
    data[at + 148] ^= 255  # of its check sum
    path.write_bytes(data[: None if damage == "header" else at + 100])
    with pytest.raises(ValueError, match=rf"a\.tar.*damaged or cut off at byte {at}"):
        open_source(path)


def test_a_shard_without_an_end_mark_is_read_and_says_so(tmp_path):
    path = shard(tmp_path / "a.tar", {f"{i}.jpg": jpeg() for i in range(6)})
    with tarfile.open(path) as tar:
        at = tar.getmembers()[3].offset  # a whole file to a writer that is not closed
    path.write_bytes(path.read_bytes()[:at])
    source = open_source(path)
    assert names(source) == [f"a.tar:{i}.jpg" for i in range(3)]
    assert source.passed_over == {"a.tar:(end)": "no end mark: it may be cut"}


def test_metadata_of_macos_are_no_images(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    (tmp_path / "._1.jpg").write_bytes(b"\x00\x05\x16\x07")
    source = open_source(tmp_path)
    assert names(source) == ["1.jpg"]
    assert source.passed_over == {"._1.jpg": "not an image: metadata of macOS"}


def test_one_image_is_not_taken_for_a_shard(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    for path in (tmp_path / "1.jpg", f"{tmp_path}/*.jpg"):
        with pytest.raises(ValueError, match=r"one image is no source. Got .*1\.jpg"):
            open_source(path)


def test_names_may_be_any_bytes(tmp_path):
    folder = tmp_path / "my photos" / os.fsdecode(b"\xe9t\xe9")  # not UTF-8
    folder.mkdir(parents=True)
    (folder / "ä b.jpg").write_bytes(jpeg())
    source = open_source(tmp_path / "my photos")
    assert source.read(0) == jpeg()
    part, manifest = sub_data(source, 1.0)
    assert len(manifest.digest) == 64
    part.save_list(tmp_path / "part.json")
    assert open_source(tmp_path / "part.json").read(0) == jpeg()
    listed = os.fsencode(source.places[0].file)
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + listed + b"\r\n")
    assert open_source(tmp_path / "list.txt").read(0) == jpeg()


def test_a_list_without_its_description_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"places": []}')
    with pytest.raises(ValueError, match=r"is no list of images. Got KeyError: 'description'"):
        open_source(tmp_path / "a.json")


def test_a_file_that_vanished_is_a_corrupt_image(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    source = open_source(tmp_path)
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(CorruptImageError, match=r"1\.jpg"):
        source.read(0)


def odd_files(root):
    """What is no file, under the names of images: name -> what it is."""
    os.mkfifo(root / "pipe.jpg")
    listener = socket.socket(socket.AF_UNIX)
    short = os.path.relpath(root)  # a socket's path may not be long
    listener.bind(f"{short}/socket.png" if len(short) < 90 else f"{root}/socket.png")
    listener.close()
    (root / "device.jpg").symlink_to("/dev/zero")
    (root / "link.tif").symlink_to(root / "pipe.jpg")
    (root / "shard.tar").symlink_to(root / "pipe.jpg")
    (root / "folder.webp").mkdir()
    return {
        "device.jpg": "not an image: a device",
        "folder.webp": "not an image: an empty folder",
        "link.tif": "not an image: a pipe",
        "pipe.jpg": "not an image: a pipe",
        "shard.tar": "not an image: a pipe",
        "socket.png": "not an image: a socket",
    }


def test_what_is_no_file_is_passed_over_and_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1.jpg").write_bytes(jpeg())
    expected = odd_files(tmp_path)
    source = open_source(tmp_path)
    assert names(source) == ["1.jpg"]
    assert source.passed_over == expected


def test_a_file_that_became_a_pipe_is_a_corrupt_image(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    source = open_source(tmp_path)
    (tmp_path / "1.jpg").unlink()
    os.mkfifo(tmp_path / "1.jpg")
    with pytest.raises(CorruptImageError, match=r"1\.jpg: cannot be read. Got it is a pipe"):
        source.read(0)


@pytest.mark.parametrize("name", ["x.tar", "x.txt", "x.json", "x.jpg", "x"])
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a link to nothing"])
def test_a_source_that_is_no_file_is_refused_at_once(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "a device" else tmp_path / "nothing")
    for form in (path, f"{tmp_path}/x*"):
        with pytest.raises(ValueError, match=f"neither folder nor file. Got .*{kind}"):
            open_source(form)


def test_a_link_to_nothing_is_a_lost_image(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    (tmp_path / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "3.jpg").symlink_to(tmp_path / "3.jpg")  # leads to itself
    source = open_source(tmp_path)
    assert names(source) == ["1.jpg", "2.jpg", "3.jpg"]
    for number in (1, 2):
        with pytest.raises(CorruptImageError, match="cannot be read"):
            source.read(number)


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    (tmp_path / "1.jpg").write_bytes(jpeg())
    os.truncate(tmp_path / "1.jpg", 1 << 40)  # takes no space
    source = open_source(tmp_path)
    with pytest.raises(CorruptImageError, match="more than any image needs"):
        source.read(0)


def test_all_extensions_of_the_decoder_are_read(tmp_path):
    for number, name in enumerate(sorted(EXTENSIONS)):
        (tmp_path / f"{number:02}{name.upper()}").write_bytes(jpeg())
    for name in ("a.eps", "b.svg", "c.heic"):
        (tmp_path / name).write_bytes(jpeg())
    source = open_source(tmp_path)
    assert len(source) == len(EXTENSIONS) >= 20
    assert set(source.passed_over.values()) == {
        f"not an image: {name}" for name in (".eps", ".svg", ".heic")
    }


def test_keys_of_a_shard_that_have_no_image_are_told(tmp_path):
    members = {"0.jpg": jpeg(), "0.cls": b"1", "0.json": b"{}", "1.heic": b"x", "1.cls": b"2"}
    source = open_source(shard(tmp_path / "a.tar", members))
    assert names(source) == ["a.tar:0.jpg"]
    assert source.passed_over == {"a.tar:1.heic": "not an image: .heic"}


def test_a_member_of_less_than_nothing_ends(tmp_path):
    path = shard(tmp_path / "a.tar", {"0.jpg": jpeg(), "1.jpg": jpeg()})
    data = bytearray(path.read_bytes())
    at = data.index(b"1.jpg")
    data[at + 124 : at + 136] = b"\xff" * 11 + b"\0"  # -256 in the form for large numbers
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not a readable tar shard"):
        open_source(path)


def test_what_two_sources_passed_over_is_told_of_both(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").write_bytes(jpeg())
        (tmp_path / name / "notes.txt").write_text("x")
    source = open_source([tmp_path / "a", tmp_path / "b"])
    assert len(source.passed_over) == 2
    assert source.select([0], "a part").passed_over == source.passed_over
    assert count_reasons(source.passed_over) == "2 other files: 2 not an image: .txt"
