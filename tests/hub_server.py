"""A hub on loopback: repositories with commits, as the hub's own clients ask for them.

`HF_ENDPOINT` points clients at it. It serves what huggingface_hub, transformers and datasets ask of
data sets and models: what a revision is, which files it holds, and the files. Who has the token may
make a model's repository and send a commit, its weights by git-lfs.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


class Hub(ThreadingHTTPServer):
    """Repositories by (kind, name), kind being datasets or models; each request is noted."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits, self.refs, self.requests = {}, {}, []
        self.broken = False  # whether it answers 503 to everything
        self.token, self.private, self.large = None, set(), {}  # of large files sha256 -> bytes
        self.messages = []  # of commits that clients sent

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


def clients_of(hub, folder):
    """The environment of clients that know this hub only, and keep what they fetch in a folder."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "BASHRAC_CACHE": str(folder / "cache"),
    }


def sums(offset):
    """A file of six word problems that differ from those of another offset."""
    made = [{"question": f"What is {i} + {offset}?", "answer": f"{i} + {offset}\n#### {i + offset}"}
            for i in range(6)]  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in made).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def do_PUT(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self._send(200, b"")

    def _answer(self, body=b""):
        """Find the repository that a path begins with, and what is asked of it."""
        url = urlsplit(self.path)
        self.server.requests.append((self.command, self.path))
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if self.server.broken:
            return self._send(503, b"")
        is_question = self.command != "POST" or "paths-info" in parts
        if "Authorization" in self.headers and not is_question:
            return self._change(parts, body)
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

    def _change(self, parts, body):
        """What somebody with a token may ask for."""
        if self.headers["Authorization"] != f"Bearer {self.server.token}":
            return self._error("Unauthorized", status=401)
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if parts == ["api", "validate-yaml"]:
            wrong = problems_of_card(json.loads(body)["content"])
            errors = {"errors": [{"message": one} for one in wrong], "warnings": []}
            return self._json(errors, status=400 if wrong else 200)
        if parts[-2:] == ["objects", "batch"]:
            objects = json.loads(body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}
            return self._json({"objects": objects, "transfer": "basic"})
        repository, question = ("models", "/".join(parts[2:4])), parts[4]
        if repository not in self.server.commits:
            return self._error("RepoNotFound")
        if question == "preupload":
            return self._json({"files": list(map(_upload_mode, json.loads(body)["files"]))})
        return self._receive(repository, [json.loads(line) for line in body.splitlines()])

    def _create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.server.url}/{name}"}
        if ("models", name) in self.server.commits:
            return self._json(url, status=409)
        if wanted.get("visibility") == "private":
            self.server.private.add(name)
        self.server.push("models", name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json(url)

    def _receive(self, repository, lines):
        """A commit: its message, and files by content or by the digest of what was sent before."""
        held = dict(self.server.commits[repository][self.server.refs[repository]["main"]])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                held[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                held[value["path"]] = self.server.large[value["oid"]]
            else:
                return self._error("DeletionRefused", status=403)
        commit = self.server.push(*repository, held)
        url = f"{self.server.url}/{repository[1]}/commit/{commit}"
        return self._json({"commitUrl": url, "commitOid": commit})

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
            facts["private"] = repository[1] in self.server.private
            return self._json({**facts, "downloads": 0, "likes": 0})
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

    def _json(self, value, status=200):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

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


def problems_of_card(content):
    """What the hub refuses in the front matter of a model's README.md, as far as we give it."""
    data = yaml.safe_load(content.split("---\n")[1])
    wrong = [key for key in data if key not in _CARD_KEYS]
    names = [data.get("base_model", "a/b"), *data.get("datasets", [])]
    wrong += [name for name in names if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)]
    wrong += [tag for tag in data["tags"] if not isinstance(tag, str)]
    for result in [one for model in data.get("model-index", []) for one in model["results"]]:
        if (
            not isinstance(result["metrics"][0]["value"], (int, float))
            or not result["dataset"]["type"]
        ):
            wrong.append(result)
    return [f"not valid: {one}" for one in wrong]


_CARD_KEYS = (
    "base_model", "base_model_relation", "datasets", "library_name", "license", "license_link",
    "license_name", "model-index", "pipeline_tag", "tags",
)  # fmt: skip


def _upload_mode(file):
    is_large = file["path"].endswith(".safetensors")
    return {
        "path": file["path"],
        "uploadMode": "lfs" if is_large else "regular",
        "shouldIgnore": False,
    }


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
