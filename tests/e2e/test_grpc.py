"""The gRPC front with grpcio: generate, tokenize, info, stats, health, reflection, errors, cancel; and the same verdict as HTTP."""
import json
import time

import pytest

grpc = pytest.importorskip("grpc", reason="grpcio is not installed (pip install -r tests/e2e/requirements.txt)")
pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")

import kvasir_grpc  # noqa: E402
from kvasir_grpc import pb  # noqa: E402
from kvasir_server import DEMO, SLOW, Server  # noqa: E402


@pytest.fixture(scope="module")
def server():
    with Server(DEMO, "--served-model-name", "kvasir-demo") as s:
        yield s


@pytest.fixture(scope="module")
def client(server):
    with kvasir_grpc.connect(server.grpc_port) as c:
        yield c


def chat(text):
    return pb.Chat(messages_json=json.dumps([{"role": "user", "content": text}]))


def collect(events):
    text, ids, finished = "", [], []
    for event in events:
        text += event.delta.text
        ids += event.delta.token_ids
        if event.WhichOneof("event") == "finished":
            finished.append(event.finished)
    return text, ids, finished


def test_generate_equals_http(server, client):
    body = {"messages": [{"role": "user", "content": "Tell me a story about a fox."}], "max_tokens": 40, "temperature": 0.8, "seed": 4}
    http = server.post("/v1/chat/completions", {**body, "return_token_ids": True})
    request = pb.GenerateRequest(chat=chat("Tell me a story about a fox."), max_tokens=40, sampling=pb.SamplingParams(temperature=0.8, seed=4))
    text, ids, finished = collect(client.generate(request))
    assert text == http["choices"][0]["message"]["content"]
    assert ids == http["choices"][0]["token_ids"]
    assert finished[-1].usage.prompt_tokens == http["usage"]["prompt_tokens"]
    assert finished[-1].usage.completion_tokens == http["usage"]["completion_tokens"]


def test_choices_and_logprobs(client):
    request = pb.GenerateRequest(text="Once upon a time", max_tokens=6, n=3, logprobs=2, ignore_eos=True, prompt_logprobs=1,
                                 sampling=pb.SamplingParams(temperature=1, seed=9))
    started, per_choice, finished = None, {}, {}
    for event in client.generate(request):
        kind = event.WhichOneof("event")
        if kind == "started":
            started = event.started
        elif kind == "delta":
            per_choice.setdefault(event.delta.index, []).extend(event.delta.logprobs)
        else:
            finished[event.finished.index] = event.finished
    assert len(started.prompt_logprobs) == started.prompt_tokens - 1
    assert sorted(per_choice) == [0, 1, 2] and sorted(finished) == [0, 1, 2]
    for logprobs in per_choice.values():
        assert len(logprobs) == 6
        assert all(len(l.top) == 2 and l.chosen.logprob <= 0 and l.chosen.rank >= 1 for l in logprobs)
    assert all(f.reason == pb.GenerateEvent.FINISH_REASON_LENGTH for f in finished.values())


def test_tokenize_round_trip(server, client):
    ids = client.stub.Tokenize(pb.TokenizeRequest(text="The fox said 12.")).ids
    assert list(ids) == server.post("/tokenize", {"prompt": "The fox said 12."})["tokens"]
    assert client.stub.Detokenize(pb.DetokenizeRequest(ids=ids, skip_special_tokens=True)).text == "The fox said 12."
    assert len(client.stub.Tokenize(pb.TokenizeRequest(chat=chat("hi"))).ids) > 3


def test_info_and_stats(client):
    info = client.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert info.id == "kvasir-demo" and info.architecture == "LlamaForCausalLM" and info.max_model_len > 0 and info.has_chat_template
    stats = client.stub.GetStats(pb.GetStatsRequest())
    assert stats.kv_blocks_total > 0 and stats.generated_tokens_total > 0


def test_health_and_reflection(server):
    health_pb2 = pytest.importorskip("grpc_health.v1.health_pb2")
    from grpc_health.v1 import health_pb2_grpc
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "kvasir.v1.Inference"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
        reflection = pytest.importorskip("grpc_reflection.v1alpha.proto_reflection_descriptor_database")
        database = reflection.ProtoReflectionDescriptorDatabase(channel)
        assert "kvasir.v1.Inference" in database.get_services()


BAD = [
    (dict(text="x", sampling=pb.SamplingParams(temperature=float("nan"))), "temperature"),
    (dict(text="x", sampling=pb.SamplingParams(temperature=-1)), "temperature"),
    (dict(text="x", sampling=pb.SamplingParams(top_p=float("inf"))), "top_p"),
    (dict(text="x", sampling=pb.SamplingParams(min_p=float("nan"))), "min_p"),
    (dict(text="x", sampling=pb.SamplingParams(logit_bias={-1: 1.0})), "logit_bias"),
    (dict(text="x", n=0), "n"),
    (dict(text="x", n=2**40), "n"),
    (dict(text="x", max_tokens=-1), "max_tokens"),
    (dict(text="x", max_tokens=2**62), "max_tokens"),
    (dict(text="x", logprobs=10000), "logprobs"),
    (dict(text="x", stop=["a"] * 1000), "stop"),
    (dict(token_ids=pb.TokenIds(ids=[2**31 - 1])), "prompt"),
    (dict(token_ids=pb.TokenIds(ids=[])), "prompt"),
    (dict(chat=pb.Chat(messages_json="{")), "messages"),
    (dict(chat=pb.Chat(messages_json="[" * 100000)), "messages"),
    (dict(), "input"),
]


@pytest.mark.parametrize("fields,name", BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_requests(client, fields, name):
    with pytest.raises(grpc.RpcError) as error:
        list(client.generate(pb.GenerateRequest(**fields)))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT, error.value
    assert name in error.value.details()


def test_unknown_model(client):
    with pytest.raises(grpc.RpcError) as error:
        list(client.generate(pb.GenerateRequest(text="x", model="nope")))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_cancel_frees_the_request(server, client):
    call = client.generate(pb.GenerateRequest(text="Once", max_tokens=900, ignore_eos=True))
    next(call)
    call.cancel()
    deadline = time.time() + 5 * SLOW
    while server.metric("vllm:num_requests_running") > 0:
        assert time.time() < deadline, "the cancelled request still runs"
        time.sleep(0.01)


def test_deadline(client):
    with pytest.raises(grpc.RpcError) as error:
        list(client.generate(pb.GenerateRequest(text="Once", max_tokens=900, ignore_eos=True, timeout_ms=1)))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_keys():
    with Server(DEMO, "--api-key", "sesame") as server:
        with kvasir_grpc.connect(server.grpc_port) as nobody, pytest.raises(grpc.RpcError) as error:
            list(nobody.generate(pb.GenerateRequest(text="x", max_tokens=1)))
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with kvasir_grpc.connect(server.grpc_port, key="sesame") as friend:
            assert collect(friend.generate(pb.GenerateRequest(text="x", max_tokens=1)))[1]
