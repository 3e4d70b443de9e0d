import http.server
import io
import tarfile
import threading

import pytest
from PIL import Image

from proteus.data import open_source
from proteus.data.shards import expand_urls


def jpeg(color=(9, 9, 9)):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(data, "JPEG")
    return data.getvalue()


def tar(members):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server: path -> bytes, or a list of what it answers in turn."""
    monkeypatch.setenv("PROTEUS_CACHE", str(tmp_path / "cache"))
    pages, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            page = pages.get(self.path, 404)
            if isinstance(page, list):
                page = page.pop(0)
            if isinstance(page, int):
                self.send_error(page)
                return
            body, cut = page if isinstance(page, tuple) else (page, False)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)

        def log_message(self, *args):
            pass

    bound = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=bound.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{bound.server_address[1]}", pages, asked
    bound.shutdown()
    bound.server_close()


def test_addresses_are_expanded():
    assert expand_urls("a-{008..010}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert expand_urls("{0..1}/{0..1}") == ["0/0", "0/1", "1/0", "1/1"]
    with pytest.raises(ValueError, match="an empty range"):
        expand_urls("a-{3..1}.tar")


def test_shards_on_a_server_are_fetched_once(server):
    url, pages, asked = server
    pages |= {f"/t-{n:02}.tar": tar({f"{n}.jpg": jpeg()}) for n in range(3)}
    source = open_source(f"{url}/t-{{00..02}}.tar")
    assert [source.name(i) for i in range(3)] == [f"t-{n:02}.tar:{n}.jpg" for n in range(3)]
    assert source.read(1) == jpeg()
    open_source(f"{url}/t-{{00..02}}.tar")
    assert len(asked) == 3


def test_a_fault_on_the_way_is_tried_again_and_leaves_nothing_half(server, tmp_path):
    url, pages, asked = server
    whole = tar({"0.jpg": jpeg()})
    pages["/a.tar"] = [(whole, True), 503, whole]
    assert len(open_source(f"{url}/a.tar")) == 1
    assert len(asked) == 3
    pages["/b.tar"] = [(whole, True)] * 3
    with pytest.raises(ValueError, match=r"cannot be fetched.*b\.tar"):
        open_source(f"{url}/b.tar")
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert [p.name for p in files] == ["a.tar"]


def test_what_is_not_there_or_no_tar_is_an_error_at_once(server, tmp_path):
    url, pages, asked = server
    pages["/page.tar"] = b"<html>log in</html>" * 100
    with pytest.raises(ValueError, match=r"cannot be fetched. Got HTTPError: HTTP Error 404"):
        open_source(f"{url}/nothing.tar")
    assert len(asked) == 1
    with pytest.raises(ValueError, match=r"cannot be fetched.*not a readable tar"):
        open_source(f"{url}/page.tar")
    with pytest.raises(ValueError, match=r"cannot be fetched. Got InvalidURL"):
        open_source(f"{url}/a b.tar")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_classes_are_read_from_the_shard(tmp_path):
    members = {"0.jpg": jpeg(), "0.cls": b"7", "d/1.jpg": jpeg(), "d/1.cls": b"8", "2.jpg": jpeg()}
    (tmp_path / "a.tar").write_bytes(tar(members))
    source = open_source(tmp_path / "a.tar")
    assert [source.label(i) for i in range(3)] == ["7", "8", None]
