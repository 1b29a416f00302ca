"""transformers' continuous batching on PyTorch, in bfloat16, with weights made up: the other side of serving_rates.py.

Requests are added and tokens taken in this process, without the HTTP that Kvasir's side pays for. A request's tokens are streamed: each is counted when the
manager hands it over.
"""
import contextlib
import inspect
import threading
import time

import load
import peer_process

try:
    import torch
    import transformers
    absent = None
except ImportError as error:
    absent = error


def make_model(folder, device):
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device(device):
        # Attention for its paged cache has had two names; without flash attention this is the fastest there is.
        for attention in ("sdpa", "paged|sdpa", "sdpa_paged"):
            try:
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention).eval()
            except ValueError:
                continue
            yield attention, model


def known(function, **arguments):
    """Those of the arguments that this version's function has."""
    return {name: value for name, value in arguments.items() if name in inspect.signature(function).parameters}


def make_manager(model, requests, tokens, flash):
    generation = transformers.GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    more = {"streaming": True}
    if hasattr(transformers, "ContinuousBatchingConfig"):
        wanted = {"max_requests_per_batch": requests, "allow_block_sharing": False, "auto_switch_to_flash": flash}
        if model.device.type == "cpu":  # what it takes by itself is made for a GPU's memory
            wanted |= {"num_blocks": 2 * requests, "max_batch_tokens": 512}
        more["continuous_batching_config"] = transformers.ContinuousBatchingConfig(**known(transformers.ContinuousBatchingConfig, **wanted))
    return model.init_continuous_batching(generation_config=generation, **known(model.init_continuous_batching, **more))


class Peer:
    manager = None

    def load(self, folder, device, requests, tokens, threads):
        """Tries what there is until a request is answered: versions differ in names, and flash attention may have to be fetched."""
        if absent is not None:
            raise absent
        if threads > 0:
            torch.set_num_threads(threads)
        start, problems = time.perf_counter(), []
        for attention, model in make_model(folder, device):
            for flash in (True, False):
                try:
                    self.manager = make_manager(model, requests, tokens, flash)
                    self.begin(tokens)
                    self.closed_loop(1, 0, -1, 40, model.config.vocab_size)
                except Exception as error:
                    problems.append(f"{attention}: {type(error).__name__}: {error}")
                    self.drop()
                    continue
                return {"seconds": time.perf_counter() - start, "attention": str(model.config._attn_implementation),
                        "system": f"transformers {transformers.__version__}, torch {torch.__version__}"}
        raise RuntimeError("; ".join(problems))

    def drop(self):
        """The next one needs the memory."""
        with contextlib.suppress(Exception):
            self.manager.stop(block=True, timeout=5)
        self.manager = None

    def begin(self, tokens):
        self.tokens, self.lock, self.open, self.ended, self.added, self.failure = tokens, threading.Lock(), {}, threading.Condition(), 0, None
        self.streaming = known(self.manager.add_request, streaming=True)
        with torch.inference_mode():
            if hasattr(self.manager, "warmup"):
                self.manager.warmup()
            self.manager.start()
        threading.Thread(target=self.take, args=(self.manager,), daemon=True).start()

    def add(self, prompt, then=None):
        answer = load.Answer()
        with self.lock:
            self.added += 1
            name = f"r{self.added}"
            self.open[name] = (answer, then)
        self.manager.add_request(prompt, request_id=name, max_new_tokens=self.tokens, **self.streaming)
        return answer

    def take(self, manager):
        """The thread that gets what is generated, until the manager fails."""
        try:
            while manager.is_running():
                result = manager.get_result(timeout=0.5)
                if result is not None:
                    self.took(result, time.perf_counter())
        except Exception as error:
            if manager is self.manager:
                self.failure = f"{type(error).__name__}: {error}"

    def took(self, result, now):
        with self.lock:
            answer, then = self.open.get(result.request_id, (None, None))
        if answer is None:
            return
        answer.pieces += [now] * (len(result.generated_tokens) - len(answer.pieces))
        if not result.is_finished():
            return
        with self.lock:
            del self.open[result.request_id]
        if result.error or len(answer.pieces) < self.tokens:
            self.failure = result.error or f"{len(answer.pieces)} of {self.tokens} tokens came"
        elif then is not None:
            then()
        with self.ended:
            self.ended.notify_all()

    def wait(self):
        """Until nothing is under way."""
        with self.ended:
            while self.open and self.failure is None:
                if not self.manager.is_running():
                    raise RuntimeError("the generation loop has ended")
                self.ended.wait(0.2)
        if self.failure is not None:
            raise RuntimeError(self.failure)

    @staticmethod
    def plain(answers):
        return {"answers": [(a.sent, a.pieces) for a in answers]}

    def closed_loop(self, clients, seconds, seed, prompt_tokens, vocabulary):
        prompts, end, answers = load.Prompts(seed, prompt_tokens, vocabulary), time.perf_counter() + seconds, []

        def next_one():
            if not answers or time.perf_counter() < end:
                answers.append(self.add(prompts.next(), next_one))

        next_one()
        for _ in range(clients - 1):
            next_one()
        self.wait()
        return self.plain(answers)

    def open_loop(self, times, seed, prompt_tokens, vocabulary):
        prompts, answers, start = load.Prompts(seed, prompt_tokens, vocabulary).take(len(times)), [], time.perf_counter() + 0.2
        for at, prompt in zip(times, prompts):
            time.sleep(max(0.0, start + at - time.perf_counter()))
            answers.append(self.add(prompt))
        self.wait()
        return self.plain(answers)


if __name__ == "__main__":
    peer_process.serve(Peer())
