"""Rendering without answering: `kvasir render`, /v1/chat/completions/render, /v1/completions/render and /apply-template; whose template a request may bring;
and templates that would never end, while the server goes on."""
import json
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvasir_server import BIN, DEMO, SLOW, Server

CHATML = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}{% if tools %}[{{ tools | map(attribute='function') | "
          "map(attribute='name') | join(',') }}]{% endif %}{% for d in documents or [] %}({{ d.text }}){% endfor %}{% if shout %}!{% endif %}"
          "{% if add_generation_prompt %}<|assistant|>{% endif %}")
HELLO = [{"role": "user", "content": "Grüße 😀"}]


def render(lines, *flags):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    done = subprocess.run([BIN, "render", *map(str, flags)], input=text, capture_output=True, text=True, timeout=60 * SLOW)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def template_file(tmp_path, source=CHATML):
    path = tmp_path / "template.jinja"
    path.write_text(source)
    return path


def test_lines_in_lines_out(tmp_path):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    code, out, _ = render([
        {"messages": HELLO},
        {"messages": HELLO, "add_generation_prompt": True, "eos_token": "</s>"},
        {"messages": [], "tools": tools, "documents": [{"text": "one"}, {"text": "two"}], "chat_template_kwargs": {"shout": True}},
        {"messages": HELLO, "tools": None, "documents": None, "chat_template_kwargs": None},
    ], "--chat-template", template_file(tmp_path))
    assert code == 0
    assert out == [{"text": "<|user|>Grüße 😀"}, {"text": "<|user|>Grüße 😀</s><|assistant|>"}, {"text": "[add](one)(two)!"}, {"text": "<|user|>Grüße 😀"}]


def test_bad_lines_are_answered_and_the_next_ones_too(tmp_path):
    bad = [("{\n", "JSON"), ("[]\n", "must be a JSON object, not array"), ({}, "messages is missing"), ({"messages": 1}, "messages"),
           ({"messages": HELLO, "tools": {}}, "tools must be an array, not object"), ({"messages": HELLO, "now": "noon"}, "now must be"),
           ({"messages": HELLO, "add_generation_prompt": 1}, "add_generation_prompt must be true or false"),
           ({"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "may not set 'messages'"), ({"messages": HELLO, "bos_token": 1}, "bos_token")]
    lines = [line for bad_line, _ in bad for line in (bad_line, {"messages": HELLO}, "\n")]
    code, out, _ = render(lines, "--chat-template", template_file(tmp_path))
    assert code == 0 and len(out) == 2 * len(bad)
    for answer, good, (_, words) in zip(out[::2], out[1::2], bad):
        assert words in answer["error"]
        assert good == {"text": "<|user|>Grüße 😀"}


def test_time_is_given_or_now(tmp_path):
    path = template_file(tmp_path, "{{ strftime_now('%Y-%m-%d %H:%M') }}")
    _, out, _ = render([{"messages": [], "now": "2024-02-29T12:30:00"}, {"messages": []}], "--chat-template", path)
    assert out[0] == {"text": "2024-02-29 12:30"}
    assert abs(time.mktime(time.strptime(out[1]["text"], "%Y-%m-%d %H:%M")) - time.time()) < 600


@pytest.mark.parametrize("files", [{"chat_template.jinja": CHATML, "tokenizer_config.json": json.dumps({"eos_token": "</s>"})},
                                   {"tokenizer_config.json": json.dumps({"chat_template": CHATML, "eos_token": {"content": "</s>"}})}])
def test_folders_with_only_a_template(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert render([{"messages": HELLO}], "--model", tmp_path)[1] == [{"text": "<|user|>Grüße 😀</s>"}]


def test_named_templates(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "rag"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    _, out, _ = render([{"messages": []}, {"messages": [], "tools": tools}, {"messages": [], "chat_template": "rag"}], "--model", tmp_path)
    assert out == [{"text": "plain"}, {"text": "tools"}, {"text": "rag"}]


def test_what_cannot_start_says_why(tmp_path):
    code, _, err = render([], "--chat-template", template_file(tmp_path, "line one\n{% if %}"))
    assert code == 2 and "template.jinja" in err and "line 2" in err
    code, _, err = render([], "--chat-template", template_file(tmp_path, "{% include 'x' %}"))
    assert code == 2 and "the tag 'include' is not supported" in err
    code, _, err = render([], "--model", tmp_path)
    assert code == 2 and "there is no chat template" in err
    code, _, err = render([])
    assert code == 2 and "--chat-template" in err


HOSTILE = {
    "endless loop": "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{% endfor %}{% endfor %}{% endfor %}",
    "doubling": "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "repeating": "{{ 'x' * 100000000000 }}",
    "endless recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "much output": "{% for a in range(90000) %}{% for b in range(90000) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "huge power": "{{ 9 ** 99999999 }}",
    "huge list": "{{ ([1] * 1000000000) | length }}",
    "wide format": "{{ '%99999999999d' % 1 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon(tmp_path, name):
    begin = time.time()
    code, out, err = render([{"messages": []}], "--chat-template", template_file(tmp_path, HOSTILE[name]))
    assert time.time() - begin < 10 * SLOW
    assert (code == 0 and "error" in out[0]) or (code == 2 and err), (out, err)
    said = out[0]["error"] if out else err
    assert any(word in said for word in ("limit", "more than", "too ", "large", "deep", "at most")), said


def test_deep_nesting_is_refused(tmp_path):
    for source in ("{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}", "{% if 1 %}" * 100000 + "{% endif %}" * 100000, "{{ " + "not " * 100000 + "1 }}"):
        code, _, err = render([], "--chat-template", template_file(tmp_path, source))
        assert code == 2 and ("deep" in err or "nest" in err), err[:300]


@pytest.fixture(scope="module")
def server():
    with Server(DEMO) as running:
        yield running


def test_chat_requests_are_rendered_as_they_would_be_answered(server):
    body = {"model": "demo", "messages": HELLO, "max_tokens": 1}
    shown = server.post("/v1/chat/completions/render", body)
    text = server.post("/apply-template", {"messages": HELLO})["prompt"]
    assert "Grüße 😀" in text
    answered = server.post("/v1/chat/completions", {**body, "return_token_ids": True})
    assert shown["token_ids"] == answered["prompt_token_ids"]
    ids = server.post("/tokenize", {"messages": HELLO})["tokens"]
    assert shown["token_ids"] == ids


def test_completion_requests_are_rendered(server):
    shown = server.post("/v1/completions/render", {"prompt": ["one", "two words"], "max_tokens": 1})
    assert [item["token_ids"] for item in shown] == [server.post("/tokenize", {"prompt": p})["tokens"] for p in ("one", "two words")]


@pytest.mark.parametrize("path", ["/v1/chat/completions/render", "/apply-template", "/v1/chat/completions"])
@pytest.mark.parametrize("body,param", [({}, "messages"), ({"messages": "hi"}, "messages"), ({"messages": []}, "messages"),
                                        ({"messages": [{"role": 1, "content": "x"}]}, "messages"),
                                        ({"messages": HELLO, "chat_template_kwargs": []}, "chat_template_kwargs"),
                                        ({"messages": HELLO, "tools": 1}, "tools"),
                                        ({"messages": HELLO, "chat_template": "{{ 1 }}"}, "chat_template")])
def test_bad_requests_name_the_field(server, path, body, param):
    status, raw, _ = server.request("POST", path, body)
    error = json.loads(raw)["error"]
    assert status == 400, raw
    assert (error["param"] or "").startswith(param), error


def test_a_trusted_template_of_a_request_is_used_and_bounded():
    with Server(DEMO, "--trust-request-chat-template") as server:
        assert server.post("/apply-template", {"messages": HELLO, "chat_template": "<{{ messages[0].content }}>"})["prompt"] == "<Grüße 😀>"
        begin = time.time()
        status, raw, _ = server.request("POST", "/apply-template", {"messages": HELLO, "chat_template": HOSTILE["endless loop"]})
        assert status == 400 and time.time() - begin < 10 * SLOW, raw
        assert server.get("/health")[0] == 200
        assert server.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2})["choices"]


def demo_with(tmp_path, chat_template):
    """A copy of the demo model that says something else about its chat template."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(DEMO / name, folder / name)
    config = json.loads((DEMO / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": chat_template}))
    return folder


def refused(server, path, body):
    status, raw, _ = server.request("POST", path, body)
    assert status == 400, raw
    return json.loads(raw)["error"]


def test_requests_choose_among_the_models_templates(tmp_path):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    named = [{"name": "default", "template": "plain {{ mood }}"}, {"name": "tool_use", "template": "{{ tools[0].function.name }}"},
             {"name": "rag", "template": "{{ documents[0].text }}"}]
    with Server(demo_with(tmp_path, named)) as server:
        def shown(**fields):
            return server.post("/apply-template", {"messages": HELLO, **fields})["prompt"]
        assert shown() == "plain "
        assert shown(chat_template_kwargs={"mood": "merry"}) == "plain merry"
        assert shown(tools=tools) == "f"
        assert shown(chat_template="rag", documents=[{"text": "page"}]) == "page"
        assert shown(chat_template="default", tools=tools) == "plain "
        # Not a name: a source, and nobody trusts it.
        error = refused(server, "/apply-template", {"messages": HELLO, "chat_template": "rags"})
        assert error["param"] == "chat_template" and "--trust-request-chat-template" in error["message"]
        with pytest.raises(AssertionError, match="404"):
            server.post("/apply-template", {"model": "another", "messages": HELLO})


def test_messages_are_kept_whole_on_the_wire(tmp_path):
    source = ("{% for m in messages %}{{ m.role }}={{ m.content }}{% for c in m.tool_calls or [] %}<{{ c.function.arguments | tojson }}"
              "{{ c.function.arguments.x + 1 }}>{% endfor %};{% endfor %}")
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1, "y": "é"}'}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "{{ 2 }}"}]
    with Server(demo_with(tmp_path, source)) as server:
        shown = server.post("/apply-template", {"messages": messages})["prompt"]
        assert shown == 'user=a\nb;assistant=None<{"x": 1, "y": "é"}2>;tool={{ 2 }};'
        call["function"]["arguments"] = "{oops"
        error = refused(server, "/apply-template", {"messages": messages})
        assert error["param"] == "messages" and "messages[1].tool_calls[0].function.arguments is not valid JSON" in error["message"]


@pytest.mark.parametrize("broken,words", [("line one\n{% for %}", ["line 2"]), ("{% include 'x' %}", ["line 1", "'include' is not supported"]),
                                          ([{"name": "default", "template": "x"}, {"name": "rag", "template": "{{ 1 | shout }}"}], ["rag", "shout"]),
                                          ([{"name": "default"}], ["tokenizer_config.json", "chat_template[0].template is missing"]),
                                          (7, ["tokenizer_config.json", "chat_template"])])
def test_a_broken_template_is_refused_at_start(tmp_path, broken, words):
    folder = demo_with(tmp_path, broken)
    with pytest.raises(RuntimeError) as refusal:
        Server(folder).stop()
    for word in [str(folder), *words]:
        assert word in str(refusal.value)


@pytest.mark.parametrize("body,param", [({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"), ({"messages": [*HELLO, 3]}, "messages[1]"),
                                        ({"messages": [{"role": "user"}]}, "messages[0].content"),
                                        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0]"),
                                        ({"messages": HELLO, "chat_template": 1}, "chat_template"), ({"messages": HELLO, "documents": "x"}, "documents"),
                                        ({"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
                                        ({"messages": HELLO, "add_generation_prompt": "yes"}, "add_generation_prompt"),
                                        ({"messages": HELLO, "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message")])
def test_the_exact_place_is_named(server, body, param):
    for path in ("/apply-template", "/v1/chat/completions/render", "/v1/chat/completions"):
        assert refused(server, path, body)["param"] == param


@pytest.mark.parametrize("body,param", [({}, "prompt"), ({"prompt": 3}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": ["x", {}]}, "prompt")])
def test_bad_completion_requests_name_the_field(server, body, param):
    assert refused(server, "/v1/completions/render", body)["param"].startswith(param)


def test_the_final_message_is_continued(server):
    messages = [*HELLO, {"role": "assistant", "content": "Well,"}]
    whole = server.post("/apply-template", {"messages": messages, "add_generation_prompt": False})["prompt"]
    shown = server.post("/apply-template", {"messages": messages, "continue_final_message": True})["prompt"]
    assert shown.endswith("Well,") and whole.startswith(shown) and len(whole) > len(shown)


def test_others_are_served_beside_hostile_templates():
    """Twice as many hostile requests as there are threads to render them, again and again; each is refused with its limit, and the others are answered."""
    with Server(DEMO, "--trust-request-chat-template") as server:
        def attack(name):
            begin = time.time()
            error = refused(server, "/apply-template", {"messages": HELLO, "chat_template": HOSTILE[name]})
            return name, error, time.time() - begin
        names = ["endless loop", "doubling", "much output", "repeating", "endless recursion", "huge list"]
        with ThreadPoolExecutor(8) as pool:
            attacks = [pool.submit(attack, name) for name in names * 4]
            served = 0
            while not all(a.done() for a in attacks):
                begin = time.time()
                assert server.get("/health")[0] == 200
                answer = server.post("/v1/completions", {"prompt": "Once", "max_tokens": 2, "temperature": 0})
                assert answer["choices"][0]["finish_reason"] in ("length", "stop")
                assert time.time() - begin < 5 * SLOW
                served += 1
            for name, error, seconds in [a.result() for a in attacks]:
                assert error["code"] == "template_budget_exceeded" and error["param"] == "chat_template", (name, error)
                assert "more than" in error["message"], (name, error)
                assert seconds < 30 * SLOW, name
        assert served > 0
        # A template's own words are told, and say whose they are.
        error = refused(server, "/apply-template", {"messages": HELLO, "chat_template": "{{ raise_exception('no ' ~ messages[0].role) }}"})
        assert error["message"] == "`chat_template`: no user" and error["param"] == "chat_template"
        assert "line 1" in refused(server, "/apply-template", {"messages": HELLO, "chat_template": "{% if %}"})["message"]
