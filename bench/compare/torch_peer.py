"""transformers on PyTorch, in bfloat16: one process, JSON lines in and out, as llama_peer.py.

Steps of its model with its own cache, the most likely token taken each time: what generate() does, without what else that costs.
"""
import random
import time

import torch
import transformers

import peer_process


class Peer:
    def load(self, path, threads):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        return {"seconds": time.perf_counter() - start, "system": f"transformers {transformers.__version__}, torch {torch.__version__}"}

    @torch.inference_mode()
    def run(self, prompt, decode, batch):
        rng = random.Random(1)
        ids = torch.tensor([[rng.randrange(300, self.model.config.vocab_size) for _ in range(prompt)] for _ in range(batch)])
        self.model(ids[:1, :1])  # warm-up
        start = time.perf_counter()
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(decode):
            out = self.model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
        seconds = time.perf_counter() - start
        return {"prefill_tok_s": batch * prompt / prefill, "decode_tok_s": batch * decode / seconds if decode else 0}


if __name__ == "__main__":
    peer_process.serve(Peer())
