"""OpenVINO GenAI: one process, JSON lines in and out, as llama_peer.py.

It reads GGUF files of f16, q8_0 and q4_0 weights, which it computes with in bfloat16 or 8 bits as it sees fit. The model it makes of
one is kept beside it, and loaded without a tokenizer: prompts are token ids. A run is timed twice, for the prompt and one token, and with
the other tokens; what decoding takes is the difference.
"""
import os
import pathlib
import random
import time

import numpy
import openvino
import openvino_genai

import peer_process


class Peer:
    def load(self, path, threads):
        source = pathlib.Path(path)
        folder = source.with_suffix(".openvino")
        folder.mkdir(exist_ok=True)
        if not (folder / "openvino_model.xml").exists():
            inside = folder / source.name
            os.link(source, inside)
            try:  # saves the model, and then fails to make a tokenizer of our made-up vocabulary
                openvino_genai.LLMPipeline(str(inside), "CPU", enable_save_ov_model=True)
            except Exception as error:
                if not (folder / "openvino_model.xml").exists():
                    raise RuntimeError(f"{path}: OpenVINO cannot read it ({error})") from error
            inside.unlink()
            (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = 2  # GB
        start = time.perf_counter()
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})
        return {"seconds": time.perf_counter() - start, "system": f"OpenVINO {openvino.get_version()}"}

    def seconds(self, prompt, tokens, batch, seed):
        rng = random.Random(seed)
        ids = [openvino.Tensor(numpy.array([[rng.randrange(300, 30000) for _ in range(prompt)]], dtype=numpy.int64)) for _ in range(batch)]
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        start = time.perf_counter()
        results = self.pipeline.generate(ids, [config] * batch)
        taken = time.perf_counter() - start
        made = [len(result.m_generation_ids[0]) for result in results]
        if made != [tokens] * batch:
            raise RuntimeError(f"OpenVINO made {made} tokens, not {tokens} each")
        return taken

    def run(self, prompt, decode, batch):
        self.seconds(8, 2, 1, 0)  # warm-up
        first = self.seconds(prompt, 1, batch, 1)
        more = self.seconds(prompt, 1 + decode, batch, 2) - first if decode else 0
        return {"prefill_tok_s": batch * prompt / first, "decode_tok_s": batch * decode / more if decode else 0}


if __name__ == "__main__":
    peer_process.serve(Peer())
