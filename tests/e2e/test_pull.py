"""kvasir pull and --model ORG/NAME against a hub in this process (fake_hub.py), beside the real huggingface_hub: each must find what
the other has fetched.
"""
import fcntl
import json
import os
import pathlib
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from fake_hub import COMMIT, LFS_FROM, Hub, etag_of
from kvasir_server import BIN, DEMO, SLOW, Server

WEIGHTS = (DEMO / "model.safetensors").read_bytes()


def demo_files():
    files = {p.name: p.read_bytes() for p in DEMO.iterdir() if p.is_file()}
    return files | {"README.md": b"# card", "pytorch_model.bin": b"pickle" * 2000, "onnx/model.onnx": b"no" * 9000}


def needed():
    return {n for n in demo_files() if n.endswith((".json", ".safetensors")) and n != "golden.json"}


def environment(hub, home, **more):
    ours = ("HF_", "KVASIR_", "SSL_CERT", "REQUESTS_CA", "CURL_CA")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours) and "proxy" not in k.lower()}
    return {**clean, "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:1", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", **more}


def kvasir(*arguments, env, timeout=60):
    return subprocess.run([BIN, *arguments], env=env, capture_output=True, text=True, timeout=timeout * SLOW)


def pull(*arguments, env, ok=True):
    result = kvasir("pull", *arguments, env=env)
    assert (result.returncode == 0) == ok, (result.returncode, result.stdout, result.stderr)
    return pathlib.Path(result.stdout.strip()) if ok else result.stderr


def hf(code, env):
    """Runs Python with the real huggingface_hub, which reads its environment when imported."""
    pytest.importorskip("huggingface_hub")
    result = subprocess.run([sys.executable, "-c", "import huggingface_hub as hf\n" + code], env=env, capture_output=True, text=True,
                            timeout=120 * SLOW)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


@pytest.fixture
def hub():
    with Hub(demo_files()) as hub:
        yield hub


def same_files(snapshot, names):
    for name in names:
        assert (snapshot / name).read_bytes() == demo_files()[name], name


def test_pull_fetches_what_is_needed_and_hf_finds_it(hub, tmp_path):
    env = environment(hub, tmp_path)
    snapshot = pull("org/model", env=env)
    assert snapshot == tmp_path / "hub/models--org--model/snapshots" / COMMIT
    assert {p.name for p in snapshot.iterdir()} == needed()
    same_files(snapshot, needed())
    repo = snapshot.parent.parent
    assert {p.name for p in (repo / "blobs").iterdir()} == {etag_of(demo_files()[n]) for n in needed()}
    assert (repo / "refs/main").read_text() == COMMIT
    assert os.readlink(snapshot / "config.json") == "../../blobs/" + etag_of(demo_files()["config.json"])
    offline = env | {"HF_HUB_OFFLINE": "1"}
    assert hf("print(hf.snapshot_download('org/model', local_files_only=True))", offline) == str(snapshot)
    for name in needed():
        assert hf(f"print(hf.hf_hub_download('org/model', {name!r}, local_files_only=True))", offline) == str(snapshot / name)
    listing = json.loads(hf("""
import json
info = hf.scan_cache_dir()
[repo] = info.repos
print(json.dumps([repo.repo_id, repo.nb_files, [str(w) for w in info.warnings], [list(r.refs) for r in repo.revisions]]))""", offline))
    assert listing == ["org/model", len(needed()), [], [["main"]]]
    # And online, huggingface_hub fetches only what was left out.
    before = len(hub.requests)
    hf("hf.snapshot_download('org/model')", env)
    fetched = {r[2].rsplit("/", 1)[1] for r in hub.requests[before:] if r[1] == "GET" and not r[2].startswith("/api/")}
    assert fetched == {n.rsplit("/", 1)[-1] for n in demo_files().keys() - needed()}


def test_what_hf_has_fetched_is_found(hub, tmp_path):
    env = environment(hub, tmp_path)
    hf("hf.snapshot_download('org/model', revision='v1.0')", env)
    hf("hf.hf_hub_download('org/model', 'config.json')", env)  # writes refs/main
    before = len(hub.requests)
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}):
        for name in ("org/model@v1.0", "org/model", f"org/model@{COMMIT}"):
            result = kvasir("generate", "--model", name, "--chat", "-p", "Hi", env=env | offline)
            assert result.returncode == 0 and result.stdout.strip(), result.stderr
    result = kvasir("generate", "--model", "org/model", "--revision", "v1.0", "--no-pull", "--chat", "-p", "Hi", env=env)
    assert result.returncode == 0, result.stderr
    assert len(hub.requests) == before


def test_pull_completes_what_hf_began(hub, tmp_path):
    env = environment(hub, tmp_path)
    hf("hf.hf_hub_download('org/model', 'model.safetensors')", env)
    refused = kvasir("generate", "--model", "org/model", "--no-pull", "-p", "x", env=env)
    assert refused.returncode == 2 and "only a part" in refused.stderr and "config.json" in refused.stderr
    before = len(hub.requests)
    same_files(pull("org/model", env=env), needed())
    assert not [r for r in hub.requests[before:] if "model.safetensors" in r[2]]


def test_other_places_of_the_cache(hub, tmp_path):
    env = environment(hub, tmp_path / "unused")
    assert pull("org/model", "--text-only", env=env | {"HF_HUB_CACHE": str(tmp_path / "a")}).is_relative_to(tmp_path / "a/models--org--model")
    assert pull("org/model", "--text-only", "--download-dir", str(tmp_path / "b"), env=env).is_relative_to(tmp_path / "b/models--org--model")
    assert not (tmp_path / "unused").exists()
    assert not hub.seen(contains="safetensors")
    env = environment(hub, tmp_path) | {"XDG_CACHE_HOME": str(tmp_path / "c")}
    del env["HF_HOME"]
    assert pull("org/model", "--text-only", env=env).is_relative_to(tmp_path / "c/huggingface/hub/models--org--model")


def test_serve_pulls_then_needs_no_hub(hub, tmp_path):
    env = environment(hub, tmp_path)
    with Server("org/model@v1.0", env=env) as server:
        assert [m["id"] for m in json.loads(server.get("/v1/models")[1])["data"]] == ["org/model"]
        answer = server.post("/v1/chat/completions", {"model": "org/model", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0})
        assert answer["choices"][0]["message"]["content"]
    before = len(hub.requests)
    with Server("org/model", "--revision", "v1.0", "--served-model-name", "x", env=env) as server:
        assert [m["id"] for m in json.loads(server.get("/v1/models")[1])["data"]] == ["x"]
    assert len(hub.requests) == before


def test_serve_stops_while_pulling(hub, tmp_path):
    hub.chunk_delay = 1.0
    server = Server("org/model", env=environment(hub, tmp_path), wait=False)
    deadline = time.time() + 30 * SLOW
    while not hub.seen("cdn", "GET") and time.time() < deadline:
        time.sleep(0.05)
    assert server.get("/health")[0] == 503
    start = time.time()
    assert server.stop(timeout=20) == 0
    assert time.time() - start < 10 * SLOW


def test_errors_say_what_was_looked_for(hub, tmp_path):
    env = environment(hub, tmp_path)

    def refused(*flags, **more):
        result = kvasir("generate", *flags, "-p", "x", env=env | more)
        assert result.returncode == 2, result
        return result.stderr

    text = refused("--model", "org/model", "--no-pull")
    assert "no such folder" in text and str(tmp_path / "hub/models--org--model") in text and "kvasir pull org/model" in text
    text = refused("--model", "org/model", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in text
    assert "no such folder" in refused("--model", "./org/model")
    assert "no such folder" in refused("--model", "/no/such/folder")
    assert "is a file" in refused("--model", str(DEMO / "config.json"))
    assert "no revisions" in refused("--model", str(DEMO), "--revision", "main")
    text = refused("--model", "org/other")
    assert "no such folder" in text and "no such model" in text and "HF_TOKEN" in text
    assert not hub.seen(contains="resolve")
    assert "HF_HUB_OFFLINE" in pull("org/model", env=env | {"HF_HUB_OFFLINE": "1"}, ok=False)
    assert "'nope'" in pull("org/model@nope", env=env, ok=False)
    assert "HF_ENDPOINT" in pull("org/model", env=env | {"HF_ENDPOINT": "mirror.example"}, ok=False)
    assert "not the name of a model" in pull("../../etc", env=env, ok=False)


def test_revisions(hub, tmp_path):
    env = environment(hub, tmp_path)
    for name in ("org/model@v1.0", "org/model@refs/pr/1", f"org/model@{COMMIT}"):
        pull(name, "--text-only", env=env)
    pull("org/model", "--revision", "main", "--text-only", env=env)
    refs = tmp_path / "hub/models--org--model/refs"
    assert sorted(str(p.relative_to(refs)) for p in refs.rglob("*") if p.is_file()) == ["main", "refs/pr/1", "v1.0"]
    assert "one revision" in pull("org/model@v1.0", "--revision", "main", env=env, ok=False)
    found = hf("print(hf.snapshot_download('org/model', revision='refs/pr/1', local_files_only=True))", env)
    assert found.endswith(COMMIT)


def test_tokens_and_gates(hub, tmp_path):
    hub.token, hub.gated = "hf_secret", True
    env = environment(hub, tmp_path)
    text = pull("org/model", env=env, ok=False)
    assert "HF_TOKEN" in text and "licence" in text and f"{hub.url}/org/model" in text
    text = pull("org/model", env=env | {"HF_TOKEN": "hf_wrong"}, ok=False)
    assert "token of HF_TOKEN has no access" in text and "hf_wrong" not in text
    assert "one line" in pull("org/model", env=env | {"HF_TOKEN": "a\r\nX-Evil: 1"}, ok=False)
    assert not hub.seen(contains="Evil") and not [r for r in hub.requests if "X-Evil" in r[3]]
    (tmp_path / "token").write_text("hf_secret\n")
    before = len(hub.requests)
    same_files(pull("org/model", env=env), needed())
    fetched = hub.requests[before:]
    assert {r[3].get("Authorization") for r in fetched if r[0] == "hub"} == {"Bearer hf_secret"}
    on_cdn = [r for r in fetched if r[0] == "cdn"]
    assert on_cdn and all("Authorization" not in r[3] for r in on_cdn)


def test_resumes_after_a_cut(hub, tmp_path):
    hub.cuts["model.safetensors"] = [1_000_000, 500_000]
    same_files(pull("org/model", env=environment(hub, tmp_path)), needed())
    gets = [r[3].get("Range") for r in hub.seen("cdn", "GET", "model.safetensors")]
    assert gets == [None, "bytes=1000000-", "bytes=1500000-"]


def test_resumes_after_a_kill(hub, tmp_path):
    env = environment(hub, tmp_path)
    hub.chunk_delay = 0.05
    process = subprocess.Popen([BIN, "pull", "org/model"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    incomplete = tmp_path / "hub/models--org--model/blobs" / (etag_of(WEIGHTS) + ".incomplete")
    deadline = time.time() + 30 * SLOW
    while not (incomplete.exists() and incomplete.stat().st_size > 300_000) and time.time() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    had = incomplete.stat().st_size
    assert 300_000 < had < len(WEIGHTS)
    assert not (tmp_path / "hub/models--org--model/refs/main").exists()
    hub.chunk_delay = 0
    before = len(hub.requests)
    same_files(pull("org/model", env=env), needed())
    [again] = [r for r in hub.requests[before:] if r[0] == "cdn" and "model.safetensors" in r[2]]
    assert again[3]["Range"] == f"bytes={had}-"
    assert not incomplete.exists()


def test_two_at_once(hub, tmp_path):
    env = environment(hub, tmp_path)
    hub.chunk_delay = 0.005
    processes = [subprocess.Popen([BIN, "pull", "org/model"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=60 * SLOW)
        assert process.returncode == 0, err
        same_files(pathlib.Path(out.strip()), needed())
    assert len(hub.seen("cdn", "GET", "model.safetensors")) == 1


def test_beside_hf(hub, tmp_path):
    """huggingface_hub's lock is ours: both at once, and every large file is fetched once."""
    pytest.importorskip("huggingface_hub")
    env = environment(hub, tmp_path)
    hub.chunk_delay = 0.02
    theirs = subprocess.Popen([sys.executable, "-c", "import huggingface_hub as hf; hf.snapshot_download('org/model')"], env=env,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 30 * SLOW
    while not hub.seen("cdn", "GET", "model.safetensors") and time.time() < deadline:
        time.sleep(0.01)
    same_files(pull("org/model", env=env), needed())
    assert theirs.wait(60 * SLOW) == 0, theirs.stderr.read()
    assert len(hub.seen("cdn", "GET", "model.safetensors")) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_bytes(hub, tmp_path, name):
    env = environment(hub, tmp_path)
    hub.corrupt.add(name)
    text = pull("org/model", env=env, ok=False)
    assert name in text and "checksum" in text and "removed" in text
    assert not list((tmp_path / "hub/models--org--model/blobs").glob(etag_of(demo_files()[name]) + "*"))
    hub.corrupt.clear()
    same_files(pull("org/model", env=env), needed())


@pytest.mark.parametrize("name", ["../../../../evil.json", "/tmp/evil.json", "tokenizer/../../evil.json", "tokenizer\u0000.json", "tokenizer\n.json"])
def test_hostile_names(hub, tmp_path, name):
    hub.listed = sorted(demo_files()) + [name]
    text = pull("org/model", env=environment(hub, tmp_path / "home"), ok=False)
    assert "refused" in text and "\x00" not in text and len(text.strip().splitlines()) == 1
    assert len(hub.requests) == 1
    assert not (tmp_path / "home").exists() and not list(tmp_path.rglob("evil*"))


def test_failures_pass(hub, tmp_path):
    hub.failures.extend([(503, {"Retry_After": "1"}), (429, {})])
    hub.stall["model.safetensors"] = 3
    start = time.time()
    result = kvasir("pull", "org/model", env=environment(hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1"))
    assert result.returncode == 0, result.stderr
    assert "503" in result.stderr and "429" in result.stderr and "no answer in time" in result.stderr
    assert time.time() - start >= 3


def test_no_server(tmp_path):
    env = environment(None, tmp_path)
    start = time.time()
    text = pull("org/model", env=env, ok=False)
    assert "cannot connect" in text and "127.0.0.1:1" in text
    assert time.time() - start < 40 * SLOW


def certificate(folder, names):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program to make a certificate with")
    folder.mkdir()
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test", "-addext",
                    f"subjectAltName={names}", "-keyout", key, "-out", cert], check=True, capture_output=True)
    return str(cert), str(key)


def test_tls(tmp_path):
    both = certificate(tmp_path / "both", "DNS:localhost,IP:127.0.0.1")
    with Hub(demo_files(), certificate=both) as hub:
        env = environment(hub, tmp_path / "home")
        text = pull("org/model", env=env, ok=False)
        assert "certificate cannot be verified" in text and "self-signed" in text and "SSL_CERT_FILE" in text
        assert "trying again" not in text
        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            same_files(pull("org/model", env=environment(hub, tmp_path / variable, **{variable: both[0]})), needed())
        assert hub.seen("cdn", "GET")
    other = certificate(tmp_path / "other", "IP:127.0.0.1")
    with Hub(demo_files(), certificate=other) as hub:  # the hub is called localhost
        text = pull("org/model", env=environment(hub, tmp_path / "home", SSL_CERT_FILE=other[0]), ok=False)
        assert "certificate cannot be verified" in text and not hub.requests


class ConnectProxy:
    """A proxy that only tunnels, and remembers to where."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:pass@127.0.0.1:{self.listener.getsockname()[1]}"
        self.heads = []
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.tunnel, args=(client,), daemon=True).start()

    def tunnel(self, client):
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        self.heads.append(head.decode())
        host, port = head.split()[1].decode().rsplit(":", 1)
        upstream = socket.create_connection((host, int(port)))
        client.sendall(b"HTTP/1.0 200 Connection established\r\n\r\n")
        ends = {client: upstream, upstream: client}
        while ready := select.select(list(ends), [], [])[0]:
            for end in ready:
                data = end.recv(65536)
                if not data:
                    return client.close(), upstream.close()
                ends[end].sendall(data)


def test_proxy(tmp_path):
    pair = certificate(tmp_path / "pair", "DNS:localhost,IP:127.0.0.1")
    proxy = ConnectProxy()
    with Hub(demo_files(), certificate=pair) as hub:
        env = environment(hub, tmp_path / "home", SSL_CERT_FILE=pair[0], HTTPS_PROXY=proxy.url, NO_PROXY="127.0.0.1")
        same_files(pull("org/model", env=env), needed())
        assert proxy.heads and all(h.startswith(f"CONNECT localhost:{hub.hub.server_port} ") for h in proxy.heads)
        assert "Basic dXNlcjpwYXNz" in proxy.heads[0] and "Authorization: Bearer" not in proxy.heads[0]
        text = pull("org/model", env=env | {"HTTPS_PROXY": "socks5://127.0.0.1:1"}, ok=False)
        assert "socks5" in text and "NO_PROXY" in text


def test_progress_on_a_terminal(hub, tmp_path):
    hub.chunk_delay = 0.02
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 72, 0, 0))
    process = subprocess.Popen([BIN, "pull", "org/model"], env=environment(hub, tmp_path), stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break
        if not data:
            break
        seen += data
    out, _ = process.communicate(timeout=60 * SLOW)
    os.close(ours)
    assert process.returncode == 0 and out.decode().strip().endswith(COMMIT)
    assert seen.count(b"\rpulling [") > 3 and b"100%" in seen and b"MiB/s" in seen
    assert seen.count(b"\n") == 1  # the summary
    assert all(len(drawn) < 72 for drawn in seen.split(b"\r") if drawn.startswith(b"pulling"))


def test_sharded(tmp_path):
    files = demo_files()
    shards = {f"model-0000{i}-of-00003.safetensors": WEIGHTS[:LFS_FROM * i] for i in (1, 2, 3)}
    del files["model.safetensors"]
    index = {"weight_map": {f"t{i}": name for i, name in enumerate(shards)}}
    files |= shards | {"model.safetensors.index.json": json.dumps(index).encode(), "consolidated.safetensors": WEIGHTS}
    with Hub(files) as hub:
        env = environment(hub, tmp_path)
        snapshot = pull("org/model", env=env)
        assert {p.name for p in snapshot.glob("*.safetensors")} == set(shards)
        for name, data in shards.items():
            assert (snapshot / name).read_bytes() == data
        # One blob lost: the cache is no longer whole, and a pull mends it.
        (snapshot / "model-00002-of-00003.safetensors").resolve().unlink()
        text = kvasir("generate", "--model", "org/model", "--no-pull", "-p", "x", env=env).stderr
        assert "lacks model-00002-of-00003.safetensors" in text
        pull("org/model", env=env)
        assert (snapshot / "model-00002-of-00003.safetensors").read_bytes() == shards["model-00002-of-00003.safetensors"]


def test_sigint_leaves_what_arrived(hub, tmp_path):
    hub.chunk_delay = 0.1
    process = subprocess.Popen([BIN, "pull", "org/model"], env=environment(hub, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    incomplete = tmp_path / "hub/models--org--model/blobs" / (etag_of(WEIGHTS) + ".incomplete")
    deadline = time.time() + 30 * SLOW
    while not (incomplete.exists() and incomplete.stat().st_size) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(10 * SLOW) != 0
    assert incomplete.stat().st_size > 0
