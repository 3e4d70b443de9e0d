"""A Hugging Face Hub on loopback: an HTTP server that speaks the Hub's API to its real client."""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(os.environ["HF_ENDPOINT"].rpartition(":")[2])  # chosen in the first conftest.py


class Hub:
    """Repositories in memory, and the faults a test asks for.

    `repos`: id -> list of (commit, {file: bytes}), oldest first. `busy`: how many of the next
    requests get 429. `cut`: how many of the next downloads of weights break off half way.
    `gated`: ids that need a permission. `refuse`: the status with which whatever writes is refused.
    `requests`: what was asked.
    """

    def __init__(self):
        self.repos, self.requests, self.gated = {}, [], set()
        self.busy = self.cut = self.refuse = 0
        self.private = {}
        bound = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", PORT), bound)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{PORT}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def commit(self, repo, files):
        history = self.repos.setdefault(repo, [])
        content = {**(history[-1][1] if history else {}), **files}
        digest = hashlib.sha1(repr((len(history), sorted(content.items()))).encode()).hexdigest()
        history.append((digest, content))
        return digest

    def add_folder(self, repo, folder):
        return self.commit(repo, {p.name: p.read_bytes() for p in folder.iterdir()})

    def at(self, repo, revision):
        history = self.repos[repo]
        if revision == "main":
            return history[-1] if history else ("0" * 40, {})
        return next((entry for entry in history if entry[0] == revision), None)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", headers=None):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        # Closed after each answer: no client keeps a connection to an earlier test's server.
        fixed = {"Content-Length": len(body), "Connection": "close"}
        for name, value in {**fixed, **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

    def error(self, status, code):
        self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.refused():
            return
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/(.+)|/tree/(.+))?", path):
            repo, revision = match[1], match[3] or match[4] or "main"
            if (found := self.find(repo, revision)) is None:
                return
            commit, files = found
            if match[4]:
                self.answer(200, [
                    {"type": "file", "path": name, "size": len(data), "oid": digest(data)}
                    for name, data in files.items()
                ])  # fmt: skip
                return
            self.answer(200, {
                "id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [],
                "downloads": 0, "likes": 0, "gated": False, "disabled": False,
                "siblings": [{"rfilename": name, "size": len(d)} for name, d in files.items()],
            })  # fmt: skip
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (found := self.find(match[1], match[2])) is None:
                return
            commit, files = found
            if match[3] not in files:
                self.error(404, "EntryNotFound")
                return
            self.send_file(commit, match[3], files[match[3]])
        else:
            self.error(404, "RepoNotFound")

    def send_file(self, commit, name, data):
        headers = {"ETag": f'"{digest(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        part = data[int(start[1]) :] if start else data
        if start:
            headers["Content-Range"] = f"bytes {start[1]}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and name.endswith(".safetensors") and self.hub.cut > 0:
            self.hub.cut -= 1
            self.send_response(206 if start else 200)
            for key, value in {"Content-Length": len(part), **headers}.items():
                self.send_header(key, str(value))
            self.end_headers()
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.answer(206 if start else 200, part, headers)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.refused():
            return
        path = self.path.partition("?")[0]
        if self.hub.refuse:
            self.answer(self.hub.refuse, {"error": "not yours"})
        elif path == "/api/repos/create":
            content = json.loads(body)
            repo = f"{content.get('organization') or 'me'}/{content['name']}"
            private = content.get("private") or content.get("visibility") == "private"
            self.hub.private[repo] = bool(private)
            new = repo not in self.hub.repos
            self.hub.repos.setdefault(repo, [])
            self.answer(200 if new else 409, {"url": f"{self.hub.endpoint}/{repo}", "id": repo})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            lines = [json.loads(line) for line in body.splitlines() if line]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = self.hub.commit(match[1], files)
            url = f"{self.hub.endpoint}/{match[1]}/commit/{commit}"
            self.answer(200, {"success": True, "commitUrl": url, "commitOid": commit})
        else:
            self.error(404, "RepoNotFound")

    def refused(self):
        self.hub.requests.append(f"{self.command} {self.path.partition('?')[0]}")
        if self.hub.busy > 0:
            self.hub.busy -= 1
            self.answer(429, {"error": "slow down"}, {"Retry-After": "0"})
            return True
        return False

    def find(self, repo, revision):
        if repo in self.hub.gated:
            self.error(403, "GatedRepo")
        elif repo not in self.hub.repos:
            self.error(404, "RepoNotFound")
        elif (found := self.hub.at(repo, revision)) is None:
            self.error(404, "RevisionNotFound")
        else:
            return found
        return None


def digest(data):
    return hashlib.sha1(data).hexdigest()
