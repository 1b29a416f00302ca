"""llama.cpp through its C API, as llama-bench and llama-batched-bench drive it: one process, JSON lines in and out.

  {"op": "load", "path": ..., "threads": 2}                          -> {"seconds": ..., "system": ...}
  {"op": "run", "prompt": 512, "decode": 128, "batch": 1}            -> {"prefill_tok_s": ..., "decode_tok_s": ...}
  {"op": "greedy", "prompt": [ids], "decode": 8}                      -> {"tokens": [...], "margins": [...]}
  {"op": "free"}
"""
import ctypes
import random
import time

import llama_cpp as lib

import peer_process

UBATCH, BATCH = 512, 2048


@lib.llama_log_callback
def silent(level, text, data):
    pass


class Peer:
    def __init__(self):
        lib.llama_log_set(silent, None)
        lib.llama_backend_init()
        self.model = None

    def load(self, path, threads):
        self.free()
        start = time.perf_counter()
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"{path}: llama.cpp cannot load it")
        self.threads = threads
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        return {"seconds": time.perf_counter() - start, "system": lib.llama_print_system_info().decode()}

    def free(self):
        if self.model:
            lib.llama_model_free(self.model)
            self.model = None

    def context(self, tokens, sequences):
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = tokens, BATCH, UBATCH, sequences
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = 1
        context = lib.llama_init_from_model(self.model, params)
        if not context:
            raise RuntimeError("llama.cpp makes no context")
        return context

    def decode(self, context, batch, rows):
        """rows: (token, position, sequence, wants logits), at most BATCH of them."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, position, 1, sequence, logits
        start = time.perf_counter()
        if lib.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        lib.llama_synchronize(context)
        return time.perf_counter() - start

    def run(self, prompt, decode, batch):
        rng = random.Random(1)
        context = self.context((prompt + decode + 255) // 256 * 256 * batch, batch)
        rows = lib.llama_batch_init(BATCH, 0, 1)
        ids = lambda count: [rng.randrange(300, self.vocab) for _ in range(count)]
        self.decode(context, rows, [(t, 0, 0, 1) for t in ids(1)])  # warm-up, as llama-bench does
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        pending = [(t, i, s, i == prompt - 1) for s in range(batch) for i, t in enumerate(ids(prompt))]
        prefill = sum(self.decode(context, rows, pending[at:at + BATCH]) for at in range(0, len(pending), BATCH))
        seconds = sum(self.decode(context, rows, [(t, prompt + i, s, 1) for s, t in enumerate(ids(batch))]) for i in range(decode))
        lib.llama_batch_free(rows)
        lib.llama_free(context)
        return {"prefill_tok_s": batch * prompt / prefill, "decode_tok_s": batch * decode / seconds if decode else 0}

    def greedy(self, prompt, decode):
        context, rows, tokens, margins = self.context(512, 1), lib.llama_batch_init(BATCH, 0, 1), [], []
        step = [(t, i, 0, i == len(prompt) - 1) for i, t in enumerate(prompt)]
        for i in range(decode):
            self.decode(context, rows, step)
            logits = sorted(((x, -t) for t, x in enumerate(lib.llama_get_logits_ith(context, -1)[:self.vocab])), reverse=True)[:2]
            tokens.append(-logits[0][1])
            margins.append(logits[0][0] - logits[1][0])
            step = [(tokens[-1], len(prompt) + i, 0, 1)]
        lib.llama_batch_free(rows)
        lib.llama_free(context)
        return {"tokens": tokens, "margins": margins}


if __name__ == "__main__":
    peer_process.serve(Peer())
