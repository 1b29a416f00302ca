"""The comparison's own arithmetic: the order of runs, the ratios and goals it prints, and that GGUF files hold the weights of the folder."""
import argparse
import asyncio
import contextlib
import io
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import unittest

import compare
import poisson

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


class Poisson(unittest.TestCase):
    def test_arrivals_are_a_process_of_that_rate(self):
        times = poisson.arrivals(20, 20000, seed=3)
        self.assertEqual(times, poisson.arrivals(20, 20000, seed=3))
        gaps = [b - a for a, b in zip(times, times[1:])]
        self.assertGreater(min(gaps), 0)
        self.assertAlmostEqual(statistics.mean(gaps), 1 / 20, delta=0.002)
        self.assertAlmostEqual(statistics.pstdev(gaps), 1 / 20, delta=0.002)  # exponential: as wide as long

    def test_percentiles(self):
        self.assertEqual([poisson.percentile(range(1, 101), part) for part in (0, 0.5, 0.99, 1)], [1, 50, 99, 100])
        self.assertEqual(poisson.percentile([5], 0.99), 5)
        self.assertEqual(poisson.percentile([3, 1, 2], 0.5), 2)

    def test_prompts_differ_and_repeat_with_the_seed(self):
        a, b = poisson.Prompts(1, 4, 1000), poisson.Prompts(1, 4, 1000)
        self.assertEqual(a.next(), b.next())
        self.assertNotEqual(a.next(), poisson.Prompts(1, 4, 1000).next())

    def served(self, reply):
        """What complete() makes of a server's bytes."""
        async def run():
            async def answer(reader, writer):
                await reader.readuntil(b"}")
                writer.write(reply)
                writer.close()
            async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
                return await poisson.complete(server.sockets[0].getsockname()[1], [1, 2], 4)
        return asyncio.run(run())

    def test_pieces_of_an_answer_are_counted(self):
        piece = b'data: {"choices": [{"text": "a"}]}\r\n\r\n'
        answer = self.served(b"HTTP/1.1 200 OK\r\n\r\n" + 4 * piece + b'data: {"choices":[],"usage":{}}\r\n\r\ndata: [DONE]\r\n\r\n')
        self.assertEqual((len(answer.pieces), len(answer.gaps())), (4, 3))
        self.assertGreater(answer.first(), 0)

    def test_refusals_and_short_answers_are_errors(self):
        with self.assertRaisesRegex(RuntimeError, "429 Too Many"):
            self.served(b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}")
        with self.assertRaisesRegex(RuntimeError, "only 0 pieces"):
            self.served(b"HTTP/1.1 200 OK\r\n\r\ndata: [DONE]\r\n\r\n")


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
