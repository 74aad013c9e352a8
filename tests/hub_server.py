"""A hub on loopback: repositories with commits, as the hub's own clients ask for them.

`HF_ENDPOINT` points clients at it. It serves what huggingface_hub, transformers and datasets ask of
data sets and models: what a revision is, which files it holds, and the files.
"""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories by (kind, name), kind being datasets or models; each request is noted."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits, self.refs, self.requests = {}, {}, []
        self.broken = False  # whether it answers 503 to everything

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def push(self, kind, name, files, *, ref="main"):
        """Add a commit that holds these files (path -> bytes), move a branch or tag to it."""
        held = {path: bytes(content) for path, content in files.items()}
        known = self.commits.setdefault((kind, name), {})
        listing = [(path, _blob_id(content)) for path, content in sorted(held.items())]
        commit = hashlib.sha1(json.dumps([len(known), name, listing]).encode()).hexdigest()
        known[commit] = held
        self.refs.setdefault((kind, name), {})[ref] = commit
        return commit

    def push_folder(self, kind, name, folder):
        """Add a commit that holds a folder's files."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        held = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        return self.push(kind, name, held)

    def handle_error(self, request, client_address):
        """A client may hang up."""


@contextmanager
def running_hub():
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body=b""):
        """Find the repository that a path begins with, and what is asked of it."""
        url = urlsplit(self.path)
        self.server.requests.append((self.command, self.path))
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if self.server.broken:
            return self._send(503, b"")
        is_api = parts[0] == "api"
        parts = parts[is_api:]
        kind = parts.pop(0) if parts[0] in ("datasets", "models") else "models"
        repository = (kind, "/".join(parts[:2]))
        if repository not in self.server.commits:
            return self._error("RepoNotFound", status=401)  # the hub hides private ones so
        rest = parts[2:]
        if is_api:
            return self._api(repository, rest, parse_qs(url.query), body)
        if rest[0] != "resolve":
            return self._error("EntryNotFound")
        return self._file(repository, rest[1], "/".join(rest[2:]))

    def _commit(self, repository, revision):
        known = self.server.refs[repository].get(revision, revision)
        return known if known in self.server.commits[repository] else None

    def _api(self, repository, rest, query, body):
        question, revision = (rest[0], rest[1]) if rest else ("revision", "main")
        commit = self._commit(repository, revision)
        if commit is None:
            return self._error("RevisionNotFound")
        files = self.server.commits[repository][commit]
        if question == "revision":
            siblings = [{"rfilename": path} for path in files]
            facts = {"id": repository[1], "sha": commit, "siblings": siblings, "tags": []}
            return self._json({**facts, "private": False, "downloads": 0, "likes": 0})
        if question == "tree":
            found = _tree(files, "/".join(rest[2:]), recursive="true" in query.get("recursive", []))
        elif question == "paths-info":
            asked = (
                json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            )
            found = [entry for path in asked for entry in _entry(files, path.strip("/"))]
            return self._json(found)
        else:
            return self._error("EntryNotFound")
        return self._json(found) if found is not None else self._error("EntryNotFound")

    def _file(self, repository, revision, path):
        commit = self._commit(repository, revision)
        if commit is None:
            return self._error("RevisionNotFound")
        content = self.server.commits[repository][commit].get(path)
        if content is None:
            return self._error("EntryNotFound", commit)
        return self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{_blob_id(content)}"'})

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, code, commit=None, status=404):
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self._send(status, b"", {**headers, **({"X-Repo-Commit": commit} if commit else {})})

    def _send(self, status, body, headers=()):
        start, partial = self.headers.get("Range"), len(body)
        if start and status == 200:
            first, _, last = start.removeprefix("bytes=").partition("-")
            part = body[int(first) : int(last) + 1 if last else None]
            where = f"bytes {first}-{int(first) + len(part) - 1}/{partial}"
            status, body, headers = 206, part, {**dict(headers), "Content-Range": where}
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Stay silent."""


def _blob_id(content):
    """What git calls a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(files, path):
    """The entry of a file or folder as a list of one, or of none."""
    if path in files:
        size = len(files[path])
        return [{"type": "file", "path": path, "oid": _blob_id(files[path]), "size": size}]
    if any(name.startswith(f"{path}/") for name in files):
        oid = hashlib.sha1(path.encode()).hexdigest()
        return [{"type": "directory", "path": path, "oid": oid, "size": 0}]
    return []


def _tree(files, folder, *, recursive):
    """The entries below a folder, None where there is no such folder."""
    prefix = f"{folder}/" if folder else ""
    below = [name.removeprefix(prefix) for name in files if name.startswith(prefix)]
    if folder and not below:
        return None
    folders = {
        name.rsplit("/", depth)[0] for name in below for depth in range(1, name.count("/") + 1)
    }
    listed = [name for name in {*below, *folders} if recursive or "/" not in name]
    return [entry for name in sorted(listed) for entry in _entry(files, prefix + name)]
