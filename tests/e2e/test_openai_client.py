"""The official openai client works against the server, unchanged but for base_url."""
import json

import pytest

openai = pytest.importorskip("openai", reason="the openai package is not installed (pip install -r tests/e2e/requirements.txt)")

from kvasir_server import DEMO, SLOW, Server  # noqa: E402


@pytest.fixture(scope="module")
def server():
    with Server(DEMO, "--served-model-name", "kvasir-demo") as s:
        yield s


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", timeout=60 * SLOW)


MESSAGES = [{"role": "user", "content": "Hello! Who are you?"}]


def test_models(client):
    models = client.models.list().data
    assert [m.id for m in models] == ["kvasir-demo"]
    assert client.models.retrieve("kvasir-demo").max_model_len > 0


def test_chat_makes_sense(client):
    answer = client.chat.completions.create(model="kvasir-demo", messages=MESSAGES, temperature=0, max_tokens=60)
    text = answer.choices[0].message.content
    assert "Kvasir" in text, text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_chat_stream_equals_chat(client):
    plain = client.chat.completions.create(model="kvasir-demo", messages=MESSAGES, temperature=0.9, seed=5, max_tokens=60)
    text, finish, usage = "", None, None
    roles = []
    for chunk in client.chat.completions.create(model="kvasir-demo", messages=MESSAGES, temperature=0.9, seed=5, max_tokens=60, stream=True,
                                                stream_options={"include_usage": True}):
        if chunk.usage:
            usage = chunk.usage
        for choice in chunk.choices:
            roles.append(choice.delta.role)
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert roles[0] == "assistant"
    assert text == plain.choices[0].message.content
    assert finish == plain.choices[0].finish_reason
    assert usage.completion_tokens == plain.usage.completion_tokens


def test_cached_tokens_are_reported(client):
    messages = [{"role": "system", "content": "You are a friendly assistant. " * 8}, *MESSAGES]
    client.chat.completions.create(model="kvasir-demo", messages=messages, temperature=0, max_tokens=4)
    again = client.chat.completions.create(model="kvasir-demo", messages=messages, temperature=0, max_tokens=4)
    assert again.usage.prompt_tokens_details.cached_tokens >= again.usage.prompt_tokens - 17


def test_logprobs(client):
    answer = client.chat.completions.create(model="kvasir-demo", messages=MESSAGES, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob >= token.top_logprobs[2].logprob
        assert token.logprob <= 0 and token.token == token.top_logprobs[0].token
    legacy = client.completions.create(model="kvasir-demo", prompt="Once upon a time", temperature=0, max_tokens=8, logprobs=2)
    logprobs = legacy.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == 8
    assert "".join(logprobs.tokens) == legacy.choices[0].text


def test_n_choices_differ_and_are_reproducible(client):
    def ask():
        answer = client.chat.completions.create(model="kvasir-demo", messages=[{"role": "user", "content": "Tell me a story."}], n=4, seed=11,
                                                temperature=1.0, max_tokens=30)
        return [c.message.content for c in sorted(answer.choices, key=lambda c: c.index)]

    first = ask()
    assert len(first) == 4 and len(set(first)) > 1
    assert ask() == first


def test_stop_strings(client):
    free = client.completions.create(model="kvasir-demo", prompt="Once upon a time", temperature=0, max_tokens=40).choices[0].text
    stop = free[20:24]
    cut = client.completions.create(model="kvasir-demo", prompt="Once upon a time", temperature=0, max_tokens=40, stop=[stop]).choices[0]
    assert cut.text == free[:free.index(stop)]
    assert cut.finish_reason == "stop" and cut.stop_reason == stop
    kept = client.completions.create(model="kvasir-demo", prompt="Once upon a time", temperature=0, max_tokens=40, stop=[stop],
                                     extra_body={"include_stop_str_in_output": True}).choices[0]
    assert kept.text == free[:free.index(stop) + len(stop)]


def test_vllm_extras(client):
    answer = client.completions.create(model="kvasir-demo", prompt="Once", max_tokens=12, temperature=1, seed=3,
                                       extra_body={"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1, "ignore_eos": True, "min_tokens": 12,
                                                   "return_token_ids": True})
    assert len(answer.choices[0].token_ids) == 12
    assert answer.choices[0].finish_reason == "length"


def test_list_prompts(client):
    answer = client.completions.create(model="kvasir-demo", prompt=["Once upon", "The fox"], max_tokens=5, temperature=0)
    assert [c.index for c in answer.choices] == [0, 1]
    single = client.completions.create(model="kvasir-demo", prompt="The fox", max_tokens=5, temperature=0)
    assert answer.choices[1].text == single.choices[0].text


def test_prompt_logprobs_echo(client):
    answer = client.completions.create(model="kvasir-demo", prompt="Once upon a time", max_tokens=3, temperature=0, logprobs=1, echo=True)
    choice = answer.choices[0]
    assert choice.text.startswith("Once upon a time")
    assert choice.logprobs.token_logprobs[0] is None
    assert "".join(choice.logprobs.tokens) == choice.text


BAD = [
    ({"temperature": -1}, "temperature"), ({"temperature": "warm"}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"), ({"n": 100000}, "n"), ({"n": 2**63}, "n"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"), ({"logit_bias": {"99999999": 1}}, "logit_bias"), ({"logit_bias": {"5": 1e308}}, "logit_bias"),
    ({"presence_penalty": 9}, "presence_penalty"), ({"stop": ["x"] * 100}, "stop"), ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 999}, "top_logprobs"), ({"seed": "x"}, "seed"), ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"messages": []}, "messages"), ({"messages": "hi"}, "messages"), ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 200000}]}, "messages"), ({"extra_body": {"top_k": -7}}, "top_k"),
    ({"extra_body": {"min_p": 2}}, "min_p"), ({"extra_body": {"min_tokens": 99, "max_tokens": 9}}, "min_tokens"),
    ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"), ({"extra_body": {"stop_token_ids": [-1]}}, "stop_token_ids"),
]


@pytest.mark.parametrize("fields,param", BAD, ids=[json.dumps(b[0])[:60] for b in BAD])
def test_bad_requests_name_the_field(client, fields, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**{"model": "kvasir-demo", "messages": MESSAGES, "max_tokens": 4, **fields})
    body = error.value.body
    assert param in (body["param"] or ""), body
    assert body["type"] == "invalid_request_error" and len(body["message"]) > 15
    assert error.value.response.headers["x-request-id"]


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="nope", messages=MESSAGES)
    assert error.value.body["param"] == "model"


def test_keys():
    with Server(DEMO, "--api-key", "sesame", "--served-model-name", "m") as server:
        base = f"http://127.0.0.1:{server.port}/v1"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=base, api_key="wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=base, api_key="sesame").models.list().data[0].id == "m"
        assert server.get("/metrics")[0] == 401
        assert server.get("/health")[0] == 200
