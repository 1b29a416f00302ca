"""A hub for tests, in this process: the parts of huggingface.co's HTTP interface that downloading uses, with a CDN on a second port
that large files are redirected to, and switches for everything that can go wrong. Plain http, or https with a given certificate.
"""
import collections
import hashlib
import http.server
import json
import ssl
import threading
import time
import urllib.parse

COMMIT = "a" * 40
LFS_FROM = 4096  # files from this size on are "LFS": named by SHA-256 and served by the CDN


def etag_of(data):
    if len(data) >= LFS_FROM:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    def __init__(self, files, repo="org/model", commit=COMMIT, certificate=None):
        self.files, self.repo, self.commit = dict(files), repo, commit
        self.revisions = {"main": commit, "v1.0": commit, "refs/pr/1": commit, commit: commit}
        self.token = None         # when set, files need it; see gated
        self.gated = False
        self.listed = None        # names to list instead of the files'
        self.cuts = {}            # file -> list of byte counts: that many bytes, then the connection is closed; one per GET
        self.corrupt = set()      # files whose bytes come wrong
        self.stall = {}           # file -> seconds to wait before the body, once
        self.failures = collections.deque()  # (status, headers) for the next requests, whatever they are
        self.ranges = True
        self.chunk_delay = 0.0    # seconds after each 64 KiB
        self.requests = []        # (server, method, path, headers)
        self.lock = threading.Lock()
        self.cdn = _Server(self, "cdn", certificate)
        self.hub = _Server(self, "hub", certificate)
        self.url = self.hub.url

    def seen(self, server=None, method=None, contains=""):
        with self.lock:
            return [r for r in self.requests if server in (None, r[0]) and method in (None, r[1]) and contains in r[2]]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hub.close()
        self.cdn.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, state, name, certificate):
        self.state, self.name = state, name
        super().__init__(("127.0.0.1", 0), _Request)
        # The two go by different names, as a hub and its CDN do.
        host = "localhost" if name == "hub" else "127.0.0.1"
        self.url = f"{'https' if certificate else 'http'}://{host}:{self.server_port}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def handle_error(self, *_):
        pass  # clients that leave are part of the tests

    def close(self):
        self.shutdown()
        self.server_close()


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def error(self, status, code, message=""):
        self.reply(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message or code)

    def answer(self):
        hub = self.server.state
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        with hub.lock:
            hub.requests.append((self.server.name, self.command, path, dict(self.headers)))
            failure = hub.failures.popleft() if hub.failures else None
        if failure:
            return self.reply(failure[0], b"{}", **failure[1])
        if self.server.name == "cdn":
            return self.send_file(path[1:])
        parts = path.split("/")
        if path.startswith("/api/models/"):
            return self.api(hub, path[len("/api/models/"):])
        repo, _, rest = path[1:].partition("/resolve/")
        if repo != hub.repo:
            return self.error(401 if hub.token else 404, "RepoNotFound", "Repository not found")
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            if hub.gated:
                return self.error(403 if "Authorization" in self.headers else 401, "GatedRepo", f"Access to model {repo} is restricted.")
            return self.error(401, "RepoNotFound", "Invalid username or password.")
        revision, name = rest.split("/", 1)
        if hub.revisions.get(revision) is None:
            return self.error(404, "RevisionNotFound")
        if name not in hub.files:
            return self.error(404, "EntryNotFound")
        data = hub.files[name]
        headers = {"X_Repo_Commit": hub.commit}
        if len(data) >= LFS_FROM:
            headers |= {"X_Linked_Etag": f'"{etag_of(data)}"', "X_Linked_Size": str(len(data)), "ETag": '"redirect"'}
            return self.reply(302, b"", Location=f"{hub.cdn.url}/{urllib.parse.quote(name)}?signature=x%2Fy", **headers)
        self.send_file(name, ETag=f'"{etag_of(data)}"', **headers)

    def api(self, hub, path):
        repo, kind, revision = (path.partition("/revision/") if "/revision/" in path else path.partition("/tree/"))
        if repo != hub.repo:
            return self.error(401 if hub.token else 404, "RepoNotFound", "Repository not found")
        revision = revision or "main"
        if revision not in hub.revisions:
            return self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        names = hub.listed if hub.listed is not None else sorted(hub.files)
        if kind == "/tree/":
            entries = []
            for name in names:
                data = hub.files[name]
                entry = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
                if len(data) >= LFS_FROM:
                    entry["lfs"] = {"oid": etag_of(data), "size": len(data), "pointerSize": 130}
                entries.append(entry)
            return self.reply(200, json.dumps(entries).encode(), Content_Type="application/json")
        body = {"_id": "1", "id": repo, "modelId": repo, "sha": hub.revisions[revision], "private": False, "gated": "manual" if hub.gated else False,
                "tags": [], "siblings": [{"rfilename": n} for n in names], "cardData": {"license": "mit"}}
        self.reply(200, json.dumps(body).encode(), Content_Type="application/json")

    def send_file(self, name, **headers):
        hub = self.server.state
        data = hub.files[name]
        if name in hub.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        status, start = 200, 0
        wanted = self.headers.get("Range")
        if wanted and hub.ranges:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(data):
                return self.reply(416, b"", Content_Range=f"bytes */{len(data)}")
            status = 206
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "HEAD":
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data) - start))
            return self.end_headers()
        with hub.lock:
            cut = hub.cuts[name].pop(0) if hub.cuts.get(name) else None
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        time.sleep(hub.stall.pop(name, 0) if self.command == "GET" else 0)
        body = data[start:] if cut is None else data[start:start + cut]
        for at in range(0, len(body), 65536):
            self.wfile.write(body[at:at + 65536])
            time.sleep(hub.chunk_delay)
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
