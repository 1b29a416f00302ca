"""Sampling defaults and end tokens from generation_config.json, its flags and the tokenizer, through HTTP and gRPC: by vLLM's rules."""
import json
import subprocess

import pytest

from kvasir_server import BIN, DEMO, Server

PROMPT = "Once upon a time"


def http(server, **fields):
    answer = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 12, "return_token_ids": True, **fields})
    choice = answer["choices"][0]
    return choice["token_ids"], choice["finish_reason"]


def grpc(server, **fields):
    pytest.importorskip("grpc")
    import kvasir_grpc
    pb = kvasir_grpc.pb
    sampling = {k: fields.pop(k) for k in list(fields) if k in pb.SamplingParams.DESCRIPTOR.fields_by_name}
    request = pb.GenerateRequest(text=PROMPT, max_tokens=fields.pop("max_tokens", 12), sampling=pb.SamplingParams(**sampling), **fields)
    ids, reason = [], None
    with kvasir_grpc.connect(server.grpc_port) as client:
        for event in client.generate(request):
            ids.extend(event.delta.token_ids)
            if event.HasField("finished"):
                reason = {1: "stop", 2: "length"}[event.finished.reason]
    return ids, reason


FRONTS = pytest.mark.parametrize("ask", [http, grpc])


def seeds(ask, server, **fields):
    return {tuple(ask(server, seed=s, ignore_eos=True, **fields)[0]) for s in range(1, 7)}


@pytest.fixture(scope="module")
def greedy():
    with Server(DEMO) as server:
        return tuple(http(server, temperature=0, ignore_eos=True)[0])


@FRONTS
def test_absent_fields_take_the_defaults(ask, greedy):
    flags = ("--override-generation-config", '{"temperature": 0, "top_p": null}')
    with Server(DEMO, *flags) as server:
        assert seeds(ask, server) == {greedy}
        assert len(seeds(ask, server, temperature=1.5)) > 1
        if ask is http:
            assert seeds(ask, server, temperature=None) == {greedy}


@pytest.mark.parametrize("override, neutral", [({"top_k": 1}, {"top_k": 0}), ({"top_p": 1e-6}, {"top_p": 1.0}), ({"min_p": 1.0}, {"min_p": 0.0})])
def test_every_filter_is_a_default(override, neutral, greedy):
    with Server(DEMO, "--generation-config", "vllm", "--override-generation-config", json.dumps({"temperature": 1.5, **override})) as server:
        for ask in (http, grpc):
            assert seeds(ask, server) == {greedy}
            assert len(seeds(ask, server, **neutral)) > 1


def test_repetition_penalty_is_a_default(greedy):
    with Server(DEMO) as server:
        wanted = http(server, temperature=0, ignore_eos=True, repetition_penalty=1.9, max_tokens=40)[0]
        assert wanted != http(server, temperature=0, ignore_eos=True, max_tokens=40)[0]
    with Server(DEMO, "--override-generation-config", '{"temperature": 0, "repetition_penalty": 1.9}') as server:
        for ask in (http, grpc):
            assert ask(server, ignore_eos=True, max_tokens=40)[0] == wanted


def test_auto_and_vllm_and_folder(tmp_path, greedy):
    """The demo's own file says temperature 0.5, top_p 0.9, do_sample true; vLLM does not look at do_sample, nor do we."""
    with Server(DEMO) as server:
        own = seeds(http, server, max_tokens=30)
        assert len(own) > 1 and own == seeds(http, server, max_tokens=30, temperature=0.5, top_p=0.9)
    with Server(DEMO, "--generation-config", "vllm") as server:
        neutral = seeds(http, server, max_tokens=30)
        assert neutral != own and neutral == seeds(http, server, max_tokens=30, temperature=1.0, top_p=1.0)
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.5, "top_p": 0.9}))
    with Server(DEMO, "--generation-config", tmp_path) as server:
        assert seeds(http, server, max_tokens=30) == own
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.0, "eos_token_id": greedy[4]}))
    with Server(DEMO, "--generation-config", tmp_path) as server:
        end = greedy.index(greedy[4])
        for ask in (http, grpc):
            ids, reason = ask(server)
            assert reason == "stop" and tuple(ids[:end]) == greedy[:end] and len(ids) <= end + 1


@FRONTS
def test_max_new_tokens_is_a_limit(ask):
    with Server(DEMO, "--override-generation-config", '{"max_new_tokens": 5}') as server:
        for fields in ({}, {"max_tokens": 40}):
            ids, reason = ask(server, ignore_eos=True, **fields)
            assert (len(ids), reason) == (5, "length")
        assert len(ask(server, ignore_eos=True, max_tokens=3)[0]) == 3
        if ask is http:
            answer = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True})
            assert answer["usage"]["completion_tokens"] == 5


def model_with_ends(folder, listed, of_tokenizer=None):
    """The demo model with other end tokens; `of_tokenizer` is an id."""
    folder.mkdir()
    for path in DEMO.iterdir():
        if path.name not in ("generation_config.json", "tokenizer_config.json"):
            (folder / path.name).symlink_to(path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    if of_tokenizer is not None:
        tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
        [config["eos_token"]] = [t for t, i in tokenizer["model"]["vocab"].items() if i == of_tokenizer]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def check_ends(server, greedy, ends):
    first = min(greedy.index(e) for e in ends)
    for ask in (http, grpc):
        ids, reason = ask(server, temperature=0)
        assert reason == "stop" and tuple(ids[:first]) == greedy[:first] and len(ids) <= first + 1
        assert tuple(ask(server, temperature=0, ignore_eos=True)[0]) == greedy
        # None of them may come before min_tokens, whatever the seed.
        for seed in range(5):
            ids, _ = ask(server, temperature=1.0, seed=seed, min_tokens=10, max_tokens=12)
            assert len(ids) >= 10 and not set(ids[:10]) & set(ends)


def test_listed_ends(tmp_path, greedy):
    ends = [greedy[6], greedy[3]]
    with Server(model_with_ends(tmp_path / "m", [2, *ends])) as server:
        check_ends(server, greedy, ends)


def test_end_of_the_tokenizer(tmp_path, greedy):
    pytest.importorskip("grpc")
    end = greedy[5]
    with Server(model_with_ends(tmp_path / "m", 2, of_tokenizer=end)) as server:
        check_ends(server, greedy, [end])
        import kvasir_grpc
        with kvasir_grpc.connect(server.grpc_port) as client:
            info = client.stub.GetModelInfo(kvasir_grpc.pb.GetModelInfoRequest())
        assert sorted(info.eos_token_ids) == sorted({2, end})


def test_generate_is_greedy_unless_told(greedy):
    def ids(*flags):
        result = subprocess.run([BIN, "generate", "--model", str(DEMO), "-p", PROMPT, "--json", "--ignore-eos", "--max-tokens", "12", *flags],
                                capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return tuple(json.loads(result.stdout)["token_ids"])

    assert ids() == greedy  # though the demo's own file says temperature 0.5
    hot = ("--override-generation-config", '{"temperature": 1.5, "max_new_tokens": 9}')
    drawn = {ids(*hot, "--request-seed", str(seed)) for seed in range(1, 5)}
    assert len(drawn) > 1 and {len(d) for d in drawn} == {9}
    assert ids(*hot, "--temperature", "0") == greedy[:9]
    assert ids(*hot, "--top-k", "1") == greedy[:9]


@pytest.mark.parametrize("flags, words", [
    (["--generation-config", "/no/such"], ["--generation-config /no/such", "auto, vllm, or a folder"]),
    (["--override-generation-config", "{"], ["--override-generation-config", "not valid JSON"]),
    (["--override-generation-config", "[1]"], ["--override-generation-config", "JSON object"]),
    (["--override-generation-config", '{"temprature": 1}'], ["'temprature'", "repetition_penalty"]),
    (["--override-generation-config", '{"top_p": 7}'], ["--override-generation-config", "top_p is 7"]),
])
def test_mistakes_are_told_before_loading(flags, words):
    result = subprocess.run([BIN, "generate", "--model", str(DEMO), "-p", "x", *flags], capture_output=True, text=True)
    assert result.returncode == 2
    for word in words:
        assert word in result.stderr, result.stderr
