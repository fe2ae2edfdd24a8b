"""A Hugging Face Hub for the tests: repositories in memory, spoken to over HTTP, every request on record."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

USER = "tester"


class Request(NamedTuple):
    """One line of the server's log."""

    method: str
    path: str  # without the query
    route: str  # "" if there is none for this path
    status: int
    token: str | None


@dataclass
class Repository:
    """Branches that point to commits; a commit is all its files."""

    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, changes: Mapping[str, bytes | None], branch: str = "main") -> str:
        """Put files (None deletes one) on top of a branch; returns the commit's hash."""
        merged = {**self.commits.get(self.branches.get(branch, ""), {}), **changes}
        files = {path: content for path, content in merged.items() if content is not None}
        names = [self.name, len(self.commits), *sorted((path, git_hash(content)) for path, content in files.items())]
        sha = hashlib.sha1(repr(names).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha


class Hub:
    """What the server keeps. Tests may look into it, and change it behind the client's back."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []

    def create(self, name: str) -> Repository:
        """A repository of that name, new (with one empty commit) or not."""
        if name not in self.repositories:
            self.repositories[name] = Repository(name)
            self.repositories[name].commit({})
        return self.repositories[name]

    def commit(self, name: str, changes: Mapping[str, bytes | None], branch: str = "main") -> str:
        """Commit to a repository without a client, creating it if need be."""
        return self.create(name).commit(changes, branch)

    def sha(self, name: str, revision: str = "main") -> str | None:
        """The commit that a branch or a hash names; None if there is none."""
        repository = self.repositories.get(name, Repository(name))
        sha = repository.branches.get(revision, revision)
        return sha if sha in repository.commits else None

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repository at a revision."""
        return self.repositories[name].commits[self.sha(name, revision)]

    def requests_for(self, name: str) -> list[Request]:
        """The requests that concern a repository."""
        return [request for request in self.requests if f"/{name}/" in f"{request.path}/"]


class HubServer(ThreadingHTTPServer):
    """Serves a `Hub` on a free port of this machine, in a thread that dies with the process."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = Hub()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """The routes that `huggingface_hub` needs to create, upload, inspect and download."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together, or each answer would wait 40 ms for an acknowledgement
    server: HubServer

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr: the log is `Hub.requests`."""

    def handle_request(self) -> None:
        """Find the route, answer, keep a record."""
        path, body = unquote(urlsplit(self.path).path), self.read_body()
        self.route = ""
        with self.server.lock:
            for pattern, route in ROUTES:
                if match := re.fullmatch(pattern, path):
                    self.route = route.__name__
                    return route(self, body, **match.groupdict())
            self.refuse(404, "UnknownRoute")

    do_GET = do_HEAD = do_POST = handle_request

    # ---- routes -----------------------------------------------------------------------------------------------------

    def who_am_i(self, body: bytes) -> None:
        """Everybody is the same user."""
        self.reply({"name": USER, "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_yaml(self, body: bytes) -> None:
        """Every model card is fine."""
        self.reply({"errors": [], "warnings": []})

    def create(self, body: bytes) -> None:
        """A new repository; 409 if there is one of that name."""
        request = json.loads(body)
        name = f"{request.get('organization') or USER}/{request['name']}"
        status = 409 if name in self.server.hub.repositories else 200
        self.server.hub.create(name)
        self.reply({"url": f"{self.server.url}/{name}", "name": name, "id": name}, status)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        """Every file, of whatever size, comes inside the commit itself."""
        paths = [file["path"] for file in json.loads(body)["files"]]
        self.reply({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        """One JSON object per line: a header, then the files."""
        changes: dict[str, bytes | None] = {}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                changes[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                changes[entry["value"]["path"]] = None
            elif entry["key"] != "header":
                return self.refuse(400, f"UnknownEntry-{entry['key']}")
        if self.find(name, revision):
            sha = self.server.hub.commit(name, changes, revision)
            self.reply({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}"})

    def info(self, body: bytes, name: str, revision: str | None) -> None:
        """A repository at a revision: its commit and the names of its files."""
        if sha := self.find(name, revision or "main"):
            names = [{"rfilename": path} for path in self.server.hub.files(name, sha)]
            self.reply({"_id": sha[:24], "id": name, "sha": sha, "private": False, "tags": [], "siblings": names})

    def tree(self, body: bytes, name: str, revision: str, folder: str | None) -> None:
        """The files below a folder."""
        if sha := self.find(name, revision):
            files = {p: c for p, c in self.server.hub.files(name, sha).items() if p.startswith(f"{folder or ''}")}
            entries = [{"type": "file", "path": p, "size": len(c), "oid": git_hash(c)} for p, c in files.items()]
            self.reply(entries) if entries or not folder else self.refuse(404, "EntryNotFound")

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        """A file (or, for HEAD, what is known of it)."""
        if sha := self.find(name, revision):
            content = self.server.hub.files(name, sha).get(path)
            if content is None:
                return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": sha})
            self.reply(content, headers={"ETag": f'"{git_hash(content)}"', "X-Repo-Commit": sha})

    # ---- the wire ---------------------------------------------------------------------------------------------------

    def find(self, name: str, revision: str) -> str | None:
        """The commit; where there is none, the answer is on its way."""
        sha = self.server.hub.sha(name, revision)
        if sha is None:
            self.refuse(404, "RevisionNotFound" if name in self.server.hub.repositories else "RepoNotFound")
        return sha

    def read_body(self) -> bytes:
        """The request's body, whole or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def reply(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Send bytes, or anything else as JSON."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        path = unquote(urlsplit(self.path).path)
        self.server.hub.requests.append(Request(self.command, path, self.route, status, token))
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if data is content else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        """An error, in the header where the client looks for it."""
        self.reply({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})


NAME, REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = (
    (r"/api/whoami-v2", Handler.who_am_i),
    (r"/api/validate-yaml", Handler.validate_yaml),
    (r"/api/repos/create", Handler.create),
    (rf"/api/models/{NAME}/preupload/{REVISION}", Handler.preupload),
    (rf"/api/models/{NAME}/commit/{REVISION}", Handler.commit),
    (rf"/api/models/{NAME}/tree/{REVISION}(?:/(?P<folder>.*))?", Handler.tree),
    (rf"/api/models/{NAME}(?:/revision/{REVISION})?", Handler.info),
    (rf"/{NAME}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
)


def git_hash(content: bytes) -> str:
    """The name git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def read_folder(folder: str | Path) -> dict[str, bytes]:
    """A folder's files as a commit has them."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
