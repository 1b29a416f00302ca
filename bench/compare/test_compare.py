"""The comparison's own arithmetic: the order of runs, the ratios and goals it prints, and that GGUF files hold the weights of the folder."""
import argparse
import asyncio
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import unittest

import compare
import load
import peer_process
import serving_rates

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Compare(unittest.TestCase):
    def test_sides_alternate_and_take_turns_to_begin(self):
        order = []
        ours, theirs = compare.alternate(4, lambda: order.append("a") or len(order), lambda: order.append("b") or len(order))
        self.assertEqual("".join(order), "abbaabba")
        self.assertEqual((ours, theirs), ([1, 4, 5, 8], [2, 3, 6, 7]))

    def reported(self, *arguments, **more):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            compare.report(argparse.Namespace(json=True), more.pop("peer", "llama"), *arguments, **more)
        return json.loads(out.getvalue())

    def test_ratios_are_of_medians_and_above_one_is_better(self):
        line = self.reported("c1", "bf16", "110m", [10, 30, 20], [10, 9, 100], "tok/s")
        self.assertEqual((line["id"], line["value"], line["ceiling"], line["ratio"], line["goal"]), ("c1", 20, 10, 2, 1.45))
        line = self.reported("c13", "int8:32", "15m", [5, 5, 50], [10, 10, 10], "ms", higher_is_better=False)
        self.assertEqual((line["ratio"], line["goal"]), (2, None))
        self.assertEqual(self.reported("c3 x32", "int8:32", "110m", [7], [1], "tok/s")["goal"], 7)
        self.assertEqual(self.reported("c3 x32", "int8:32", "110m", [7], [1], "tok/s", peer="openvino")["goal"], None)

    def test_spread(self):
        self.assertEqual(compare.spread([10, 20, 30]), 1)
        self.assertEqual(compare.spread([10]), 0)


class Load(unittest.TestCase):
    def test_arrivals_are_a_process_of_that_rate(self):
        times = load.arrivals(20, 20000, seed=3)
        self.assertEqual(times, load.arrivals(20, 20000, seed=3))
        gaps = [b - a for a, b in zip(times, times[1:])]
        self.assertGreater(min(gaps), 0)
        self.assertAlmostEqual(statistics.mean(gaps), 1 / 20, delta=0.002)
        self.assertAlmostEqual(statistics.pstdev(gaps), 1 / 20, delta=0.002)  # exponential: as wide as long

    def test_percentiles(self):
        self.assertEqual([load.percentile(range(1, 101), part) for part in (0, 0.5, 0.99, 1)], [1, 50, 99, 100])
        self.assertEqual(load.percentile([5], 0.99), 5)
        self.assertEqual(load.percentile([3, 1, 2], 0.5), 2)

    def test_prompts_differ_and_repeat_with_the_seed(self):
        a, b = load.Prompts(1, 4, 1000), load.Prompts(1, 4, 1000)
        self.assertEqual(a.next(), b.next())
        self.assertNotEqual(a.next(), load.Prompts(1, 4, 1000).next())
        self.assertEqual(a.take(2), [b.next() and b.next(), b.next()])
        self.assertTrue(all(300 <= id < 1000 for id in load.Prompts(2, 500, 1000).next()))

    def test_rates(self):
        answers = [load.Answer(10, [11, 12, 13]), load.Answer(11, [12, 14, 15])]
        self.assertEqual(load.completed_rate(answers), 2 / 5)
        self.assertEqual(load.output_rate(answers), 6 / 5)
        self.assertEqual(load.output_rate(answers, 11, 13), 3 / 2)  # what came at the beginning itself is not in it

    def served(self, *replies, fields=load.SAMPLED, work=None):
        """What complete() makes of a server's bytes, which come in those pieces."""
        async def run():
            async def answer(reader, writer):
                await reader.readuntil(b"}")
                for reply in replies:
                    writer.write(reply)
                    await writer.drain()
                    await asyncio.sleep(0.01)
                writer.close()
            async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                return await (work(port) if work else load.complete(port, [1, 2], 4, fields))
        return asyncio.run(run())

    def test_pieces_of_an_answer_are_counted(self):
        piece = b'data: {"choices": [{"text": "a"}]}\r\n\r\n'
        answer = self.served(b"HTTP/1.1 200 OK\r\n\r\n" + 4 * piece + b'data: {"choices":[],"usage":{}}\r\n\r\ndata: [DONE]\r\n\r\n')
        self.assertEqual((len(answer.pieces), len(answer.gaps())), (4, 3))
        self.assertGreater(answer.first(), 0)

    def test_ids_are_counted_wherever_the_bytes_are_cut(self):
        told = (b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices":[{"text":"","prompt_token_ids":[1,2]}]}\n\ndata: {"choices":[{"text":"a","token_ids":[7]}]}\n\n'
                b'data: {"choices":[{"text":"\\"token_ids\\":[1]","token_ids":[8,9]}]}\n\ndata: {"choices":[{"text":"","token_ids":[10]}]}\n\ndata: [DONE]\n\n')
        for cut in range(30, len(told), 37):
            answer = self.served(told[:cut], told[cut:], fields=load.GREEDY_IDS)
            self.assertEqual(len(answer.pieces), 4, cut)
        with self.assertRaisesRegex(RuntimeError, "only 3 pieces"):
            self.served(told.replace(b"[8,9]", b"[8]"), fields=load.GREEDY_IDS)

    def test_refusals_and_short_answers_are_errors(self):
        with self.assertRaisesRegex(RuntimeError, "429 Too Many"):
            self.served(b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}")
        with self.assertRaisesRegex(RuntimeError, "only 0 pieces"):
            self.served(b"HTTP/1.1 200 OK\r\n\r\ndata: [DONE]\r\n\r\n")

    def test_loops(self):
        reply = b"HTTP/1.1 200 OK\r\n\r\n" + 4 * b'data: {"choices":[{"text":"a"}]}\n\n'
        opened = self.served(reply, work=lambda port: load.open_loop(port, [[1], [2], [3]], [0, 0.1, 0.2], 4))
        self.assertEqual(len(opened), 3)
        self.assertAlmostEqual(opened[2].sent - opened[0].sent, 0.2, delta=0.1)
        closed = self.served(reply, work=lambda port: load.closed_loop(port, load.Prompts(1, 2, 1000), 3, 4, 0.1))
        self.assertGreaterEqual(len(closed), 3)

    def test_a_load_is_split_over_processes(self):
        answers = load.spread(answers_of, [(1, 2), (3, 4)])
        self.assertEqual([(a.sent, a.pieces) for a in answers], [(1, [2, 3]), (3, [4, 5])])

    def test_a_server_is_awaited_and_its_words_are_kept(self):
        code = "import http.server, sys; print('started', flush=True); http.server.HTTPServer(('127.0.0.1', int(sys.argv[2])), type('H', \
(http.server.BaseHTTPRequestHandler,), {'do_GET': lambda self: (self.send_response(200), self.end_headers())})).serve_forever()"
        with load.Server([sys.executable, "-c", code.replace("\\\n", "")]) as server:
            self.assertGreater(server.seconds, 0)
            self.assertIn("started", server.log())
            self.assertTrue(server.healthy())
            self.assertIn("started", server.log())
        with self.assertRaisesRegex(RuntimeError, "did not start.*no such thing"):
            load.Server([sys.executable, "-c", "import sys; sys.exit('no such thing')"])


async def answers_of(sent, first):
    return [load.Answer(sent, [first, first + 1])]


class PeerProcess(unittest.TestCase):
    CODE = """
import sys, time
sys.path.insert(0, {here!r})
import peer_process
class Peer:
    def add(self, a, b):
        print("chatter")
        return {{"sum": a + b}}
    def fail(self): raise ValueError("no")
    def sleep(self): time.sleep(60)
    def end(self): sys.exit()
peer_process.serve(Peer())
"""

    def test_questions_and_answers(self):
        peer = peer_process.Process("it", [sys.executable, "-c", self.CODE.format(here=str(ROOT / "bench/compare"))])
        self.assertEqual(peer.ask("add", a=1, b=2), {"sum": 3})
        with self.assertRaisesRegex(RuntimeError, "it, fail: ValueError: no"):
            peer.ask("fail")
        self.assertEqual(peer.ask("add", limit=20, a=2, b=2), {"sum": 4})
        with self.assertRaisesRegex(RuntimeError, "longer than 0 s for 'sleep'"):
            peer.ask("sleep", limit=0.2)
        peer.close(0.1)  # still asleep
        self.assertIsNotNone(peer.process.returncode)

    def test_an_end_is_told(self):
        peer = peer_process.Process("it", [sys.executable, "-c", self.CODE.format(here=str(ROOT / "bench/compare"))])
        with self.assertRaisesRegex(RuntimeError, "ended during 'end'"):
            peer.ask("end")
        with self.assertRaisesRegex(RuntimeError, "ended (before|during) 'add'"):
            peer.ask("add", a=1, b=2)
        peer.close()


class GpuCheck(unittest.TestCase):
    def setUp(self):
        self.module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", importlib.machinery.SourceFileLoader(
            "gpu_check", str(ROOT / "tools/gpu_check"))))
        self.module.__spec__.loader.exec_module(self.module)
        work = tempfile.TemporaryDirectory()
        self.addCleanup(work.cleanup)
        self.check = self.module.Check(pathlib.Path(work.name), 60)

    def run_check(self, *arguments):
        with contextlib.redirect_stdout(io.StringIO()):
            return self.check.run(*arguments)

    def test_what_runs_too_long_is_ended_with_what_it_started(self):
        ok, output = self.run_check("slow", ["bash", "-c", "sleep 100 & echo $!; wait"], 0.5)
        self.assertFalse(ok)
        self.assertEqual(self.check.results[-1]["note"], "exit timeout")
        for _ in range(100):  # until somebody has taken leave of it
            state = pathlib.Path(f"/proc/{int(output)}/stat")
            if not state.exists() or state.read_text().split()[2] == "Z":
                return
            time.sleep(0.05)
        self.fail("it goes on")

    def test_results_are_the_json_lines_among_others(self):
        ok, output = self.run_check("good", ["bash", "-c", "echo words; echo '{of a peer}'; echo '{}'; echo '{\"case\": 1}'"], 5)
        self.assertTrue(ok)
        self.assertEqual(self.module.json_lines(output), [{"case": 1}])
        self.assertEqual(self.run_check("none", ["/nonexistent"], 5)[0], False)

    def test_without_transformers_the_table_says_so(self):
        line = json.dumps({"id": "c4", "case": "s: transformers was not measured to the end: no", "value": 0, "unit": "", "ceiling": 0, "ratio": 0})
        self.check.run = lambda *arguments, **more: (self.check.results.append({"note": ""}), (True, f"x\n{line}\n"))[1]
        self.assertEqual(len(self.module.serving(self.check, "s", 5)), 1)
        self.assertIn("transformers was not measured", self.check.results[-1]["note"])


class FakeSide:
    """A server that completes at most `most` requests per second, of 4 tokens each."""

    def __init__(self, args, most):
        self.args, self.most = args, most

    def closed_loop(self, clients, seed):
        rate, start = min(self.most, clients), 100.0
        tokens = [start + (i + 1) / (4 * rate) for i in range(int(4 * rate * 2 * self.args.seconds))]
        return [load.Answer(start, tokens[i::clients]) for i in range(clients)]

    def open_loop(self, times, seed):
        return [load.Answer(t, [t + 0.010, t + 0.012, t + 0.014, t + 0.017]) for t in times]


class ServingRates(unittest.TestCase):
    ARGS = argparse.Namespace(seconds=4.0, clients=[2, 8, 32], tokens=4, prompt_tokens=3, least=5, most=40, json=True, shape="s")

    def test_clients_are_split_evenly(self):
        self.assertEqual(serving_rates.split(10, 4), [3, 3, 2, 2])
        self.assertEqual(serving_rates.split(2, 4), [1, 1])

    def test_requests_are_as_many_as_fit_within_limits(self):
        self.assertEqual([serving_rates.requests_at(rate, self.ARGS) for rate in (0.1, 5, 100)], [5, 20, 40])

    def test_best_rate_is_that_of_the_best_number_of_clients(self):
        with contextlib.redirect_stderr(io.StringIO()):
            rate, clients = serving_rates.best_rate(self.ARGS, FakeSide(self.ARGS, 10))
        self.assertAlmostEqual(rate, 10, delta=0.1)
        self.assertEqual(clients, 32)

    def test_a_peer_that_cannot_gets_its_own_rate(self):
        self.assertEqual(serving_rates.rate_for_peer(6, 0.6, 10), (6, False))
        self.assertEqual(serving_rates.rate_for_peer(9.5, 0.6, 10), (6, True))

    def test_figures(self):
        found = serving_rates.figures(FakeSide(self.ARGS, 1).open_loop([0, 1], 0))
        self.assertAlmostEqual(found["output"][0], 8 / 1.017)
        self.assertAlmostEqual(found["first token, p50"][0], 10)
        self.assertAlmostEqual(found["between tokens, p50"][0], 2)
        self.assertAlmostEqual(found["between tokens, p99"][0], 3)

    def told(self, *calls):
        out, report = io.StringIO(), serving_rates.Report(self.ARGS)
        with contextlib.redirect_stdout(out):
            for name, arguments in calls:
                getattr(report, name)(*arguments)
        return [json.loads(line) for line in out.getvalue().splitlines()]

    def test_ratios_above_one_are_in_kvasirs_favour(self):
        ours, theirs = {"output": (30, "tok/s"), "first token, p50": (5, "ms")}, {"output": (10, "tok/s"), "first token, p50": (20, "ms")}
        lines = self.told(("best", ((8.0, 32), (4.0, 2))), ("run", (0.6, 4.8, ours, (2.4, True, theirs))), ("start", (3.0, 2.0)), ("run", (0.3, 1, ours, None)))
        self.assertEqual([line["ratio"] for line in lines], [2, 3, 4, 2, 0, 0])
        self.assertEqual([line["id"] for line in lines], ["c4", "c4", "c4", "c13", "c4", "c4"])
        self.assertIn("transformers cannot: 2.40 req/s, 0.6 of its own best", lines[1]["case"])
        self.assertEqual((lines[3]["value"], lines[3]["ceiling"]), (1, 2))
        self.assertEqual(lines[5]["ceiling"], 0)

    def test_the_servers_own_word_about_weights(self):
        self.assertEqual(serving_rates.weights_seconds("x\nready in 3.25 s (2.75 s for weights): http://127.0.0.1:1 (OpenAI style)\n"), 2.75)
        self.assertEqual(serving_rates.weights_seconds(""), 0)

    def test_a_peer_that_is_not_there_is_said(self):
        args = argparse.Namespace(**{**vars(self.ARGS), "peer_python": "/nonexistent/python", "device": "cpu", "threads": 1})
        best, runs, remark = serving_rates.measure_peer(args, "folder", [], time.perf_counter() + 5)
        self.assertEqual((best, runs), (None, []))
        self.assertIn("not measured to the end", remark)


class Gguf(unittest.TestCase):
    def setUp(self):
        try:
            import gguf
            import gguf_models
        except ImportError as error:
            self.skipTest(f"{error}: pip install -r bench/compare/requirements-llama.txt")
        self.gguf, self.models = gguf, gguf_models

    def test_halves_become_neighbours(self):
        import numpy as np
        rows = np.arange(16).reshape(16, 1)  # two heads of 8
        self.assertEqual(self.models.to_interleaved(rows, 2).ravel().tolist(), [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15])

    def test_files_hold_the_weights_of_the_folder(self):
        import numpy as np
        with tempfile.TemporaryDirectory() as work:
            folder = pathlib.Path(work) / "15m"
            subprocess.run([sys.executable, ROOT / "tools/make_random_model.py", "--shape", "15m", "--out", folder], check=True, stdout=subprocess.DEVNULL)
            stored = dict(self.models.read_safetensors(folder / "model.safetensors"))
            for file_format, tolerance in (("bf16", 0), ("q8_0", 1 / 127), ("q4_0", 1 / 7)):
                path = pathlib.Path(work) / f"{file_format}.gguf"
                self.models.write_gguf(folder, path, file_format)
                tensors = {t.name: t for t in self.gguf.GGUFReader(path).tensors}
                self.assertEqual(len(tensors), len(stored))
                for name in ("model.embed_tokens.weight", "model.layers.3.mlp.down_proj.weight", "model.layers.5.self_attn.k_proj.weight"):
                    want = stored[name]
                    if "k_proj" in name:
                        want = self.models.to_interleaved(want, 6)
                    tensor = tensors[self.models.gguf_name(name)]
                    got = self.gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(want.shape)
                    self.assertLessEqual(float(np.abs(got - want).max()), tolerance * float(np.abs(want).max()), (file_format, name))


if __name__ == "__main__":
    unittest.main()
