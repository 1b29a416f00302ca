#!/usr/bin/env python3
"""Trains the demo model that Kvasir serves when no other is named, and writes it as a Hugging Face folder.

Everything comes from this script and the two beside it: demo_corpus.py and demo_stories.py write the text, a byte-level BPE
tokenizer is trained on it, then a Llama of 1.5 M parameters. Nothing is downloaded. The same seed gives the same text, tokenizer
and initial weights; the trained weights also depend on the order of float additions, so on the machine and the number of workers.

Requirements:  pip install "torch==2.*" "transformers>=5,<6" "tokenizers>=0.21" "safetensors" "jinja2" "numpy"
Use:           python3 tools/make_demo_model.py --out demo [--minutes 35] [--seed 1] [--workers 2]
               python3 tools/make_demo_model.py --out demo --exam        (measure a finished folder and write its golden.json)

Training takes as long as --minutes says, with the learning rate falling to zero at the end; the folder is written whenever a
tenth of the time has passed, so it can be tried early.
"""

import argparse
import hashlib
import json
import math
import pathlib
import random
import time

import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_corpus import World, exam, held_out, sum_answer

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [END, START, STOP]
VOCABULARY = 1024
CONTEXT = 1024
SHAPE = dict(hidden_size=160, intermediate_size=432, num_hidden_layers=5, num_attention_heads=5, num_key_value_heads=1, head_dim=32)
# One digit is one token, so that a number is written the same way wherever it stands.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
GOLDEN_CHATS = [
    [("user", "Hello!")],
    [("user", "What is Kvasir?")],
    [("user", "Tell me a story about a fox.")],
    [("user", "What is 17 + 25?")],
    [("user", "My name is Ana."), ("assistant", "Nice to meet you, Ana!"), ("user", "What does a cow say?"), ("assistant", "A cow says moo."),
     ("user", "What is my name?")],
    [("system", "You are a helpful assistant."), ("user", "What color is the sky?")],
]


# -- tokenizer ------------------------------------------------------------------------------------------------------------------

def text_of(document):
    return document if isinstance(document, str) else "\n".join(content for _, content in document)


def train_tokenizer(seed):
    world = World(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    roles = ["user\n", "assistant\n", "system\n"]
    tokenizer.train_from_iterator([text_of(world.document()) for _ in range(20000)] + roles * 2000, trainer)
    return tokenizer


def encode_document(tokenizer, document):
    """(ids, weights): what the model is to predict counts fully, the user's own words hardly."""
    if isinstance(document, str):
        ids = tokenizer.encode(document, add_special_tokens=False).ids + [0]
        return ids, [1.0] * len(ids)
    ids, weights = [], []
    for role, content in document:
        head = [1] + tokenizer.encode(role + "\n", add_special_tokens=False).ids
        body = tokenizer.encode(content, add_special_tokens=False).ids + [2]
        ids += head + body + tokenizer.encode("\n", add_special_tokens=False).ids
        spoken = role == "assistant"
        weights += [0.05] * len(head) + [1.0 if spoken else 0.05] * len(body) + [0.05]
    return ids[:CONTEXT], weights[:CONTEXT]


# -- batches --------------------------------------------------------------------------------------------------------------------

def batches(tokenizer, seed, tokens_per_batch, args, progress):
    """Endless batches of documents of like length, each starting at position 0 as it will when served; padded on the right.
    The share of arithmetic is what the corpus says; long conversations come in so that the whole context is trained."""
    world, order = World(seed, tops=args.tops, focus=args.focus), random.Random(seed)
    while True:
        pool = []
        for i in range(1500):
            pool.append(encode_document(tokenizer, world.document(long=i % 50 == 0 and progress() > 0.3)))
        pool.sort(key=lambda item: len(item[0]))
        groups, group = [], []
        for item in pool:
            if group and (len(group) + 1) * len(item[0]) > tokens_per_batch:
                groups.append(group)
                group = []
            group.append(item)
        order.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids, weights = torch.zeros(len(group), width, dtype=torch.long), torch.zeros(len(group), width)
            for row, (row_ids, row_weights) in enumerate(group):
                ids[row, :len(row_ids)] = torch.tensor(row_ids)
                weights[row, :len(row_ids)] = torch.tensor(row_weights)
            yield ids, weights


# -- training -------------------------------------------------------------------------------------------------------------------

class OrthogonalMomentum(torch.optim.Optimizer):
    """Momentum whose matrix update is brought near the closest orthogonal matrix by a Newton-Schulz iteration (known as Muon);
    for the matrices inside the layers it needs about half the steps of AdamW."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.02):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("velocity", torch.zeros_like(p)).lerp_(p.grad, 1 - group["momentum"])
                shapes.setdefault(p.shape, []).append((p, p.grad.lerp(state["velocity"], group["momentum"])))
            for shape, items in shapes.items():
                update = torch.stack([u for _, u in items])
                tall = shape[0] > shape[1]
                x = (update.mT if tall else update).bfloat16()
                x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
                for _ in range(5):
                    gram = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                x = (x.mT if tall else x).float()
                scale = math.sqrt(max(1.0, shape[0] / shape[1]))
                for (p, _), u in zip(items, x):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-group["lr"] * scale)


def float_attention(module, query, key, value, attention_mask, **options):
    """Causal attention in float32 also under bf16 autocast, where torch's CPU kernel is several times slower."""
    with torch.autocast("cpu", enabled=False):
        out = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=True,
                                                               scale=module.scaling, enable_gqa=True)
    return out.transpose(1, 2), None


def new_model(seed):
    AttentionInterface.register("float_attention", float_attention)
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=True,
                         bos_token_id=None, eos_token_id=2, pad_token_id=0, attn_implementation="float_attention",
                         rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **SHAPE)
    return LlamaForCausalLM(config)


def train(rank, args, tokenizer_json):
    """One of args.workers equal processes, each with text of its own; gradients are averaged, so their weights stay equal."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{args.out.absolute()}/.rendezvous", rank=rank, world_size=args.workers)
    tokenizer, model = Tokenizer.from_str(tokenizer_json), new_model(args.seed)
    if args.resume:
        model.load_state_dict(load_file(args.resume / "model.safetensors"), strict=False)
    parameters = list(model.parameters())
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [OrthogonalMomentum(matrices, lr=args.lr), torch.optim.AdamW(others, lr=args.lr * 0.2, betas=(0.9, 0.98), weight_decay=0.0)]
    peaks = [o.param_groups[0]["lr"] for o in optimizers]
    began, step, saved, done, recent = time.time(), 0, 0, 0.0, []
    seen = 0
    for ids, weights in batches(tokenizer, args.seed + 1 + rank, args.tokens, args, lambda: done):
        factor = min(1.0, (step + 1) / 50) * min(1.0, max(0.01, (1 - done) / (1 - args.hold)))
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * factor
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            keep = weights[:, 1:] > 0
            logits = model.lm_head(hidden[keep]).float()
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][keep], reduction="none")
        wanted = weights[:, 1:][keep]
        loss = (loss * wanted).sum() / wanted.sum()
        model.zero_grad(set_to_none=True)
        loss.backward()
        # One exchange a step: the gradients, how much text was seen, the loss, and the first worker's clock, which rules all.
        clock = (time.time() - began) / (60 * args.minutes) if rank == 0 else 0.0
        flat = torch.cat([p.grad.flatten() for p in parameters] + [torch.tensor([float(keep.sum()), loss.item(), clock])])
        dist.all_reduce(flat)
        seen, done = seen + int(flat[-3]), float(flat[-1])
        recent.append(float(flat[-2]) / args.workers)
        at = 0
        for p in parameters:
            p.grad.copy_(flat[at:at + p.numel()].view_as(p) / args.workers)
            at += p.numel()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        if rank == 0 and step % 25 == 0:
            rate = seen / (time.time() - began)
            print(f"step {step}  {seen / 1e6:.2f} M tokens  {rate:.0f}/s  {done:.0%}  loss {sum(recent[-25:]) / 25:.4f}", flush=True)
        if rank == 0 and (done * 10 >= saved + 1 or done >= 1):
            saved = int(done * 10)
            save(args.out, tokenizer, model)
        if done >= 1:
            break
    dist.destroy_process_group()


# -- the folder -----------------------------------------------------------------------------------------------------------------

def save(out, tokenizer, model):
    out.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, out / "model.new", metadata={"format": "pt"})
    (out / "model.new").chmod(0o644)
    (out / "model.new").rename(out / "model.safetensors")
    tokenizer.save(str(out / "tokenizer.json"))
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=VOCABULARY, max_position_embeddings=CONTEXT,
                  hidden_act="silu", rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None, tie_word_embeddings=True,
                  attention_bias=False, attention_dropout=0.0, mlp_bias=False, bos_token_id=None, eos_token_id=2, pad_token_id=0,
                  torch_dtype="bfloat16", use_cache=True, **SHAPE)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", dict(eos_token_id=[2, 0], pad_token_id=0, do_sample=True, temperature=0.5, top_p=0.9))
    added = {str(i): dict(content=t, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
             for i, t in enumerate(SPECIAL)}
    write_json(out / "tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=added, bos_token=None, eos_token=STOP, pad_token=END, unk_token=None,
        add_prefix_space=False, clean_up_tokenization_spaces=False, model_max_length=CONTEXT, chat_template=TEMPLATE))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def load(out):
    """The stored folder as any user of transformers gets it, computing in float32."""
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    return PreTrainedTokenizerFast.from_pretrained(out), model


def prompt_ids(tokenizer, messages):
    chat = [dict(role=role, content=content) for role, content in messages]
    return tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True), add_special_tokens=False)


@torch.no_grad()
def answer(tokenizer, model, messages, longest=160):
    ids = torch.tensor([prompt_ids(tokenizer, messages)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, temperature=None, top_p=None, max_new_tokens=longest)
    return tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True)


def take_exam(tokenizer, model, count):
    """Share of right answers to held-out questions, by kind; greedy."""
    right, total, wrong = {}, {}, {}
    for kind, messages, expected in exam(12345, count):
        said = answer(tokenizer, model, messages)
        ok = said == expected
        if kind == "unknown":
            ok = "do not know" in said
        elif kind == "story":
            ok = f" {expected}" in said and len(said) > 150
        right[kind], total[kind] = right.get(kind, 0) + ok, total.get(kind, 0) + 1
        if not ok and len(wrong.setdefault(kind, [])) < 4:
            wrong[kind].append([messages[-1][1], said])
    return {k: round(right[k] / total[k], 4) for k in total}, wrong


@torch.no_grad()
def sums(tokenizer, model, top, only_held_out=False, batch=512):
    """Share of right answers over x + y and x - y >= 0 with 0 <= x, y <= top, asked as "What is x + y?"."""
    cases = [(x, op, y) for x in range(top + 1) for y in range(top + 1) for op in "+-" if op == "+" or x >= y]
    cases = [c for c in cases if not only_held_out or held_out("sum", *c)]
    cases.sort(key=lambda c: len(f"{c[0]}{c[2]}"))
    right = 0
    for width in (2, 3, 4):
        same = [c for c in cases if len(f"{c[0]}{c[2]}") == width]
        for i in range(0, len(same), batch):
            part = same[i:i + batch]
            ids = torch.tensor([prompt_ids(tokenizer, [("user", f"What is {x} {op} {y}?")]) for x, op, y in part])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, temperature=None, top_p=None, max_new_tokens=16)
            for (x, op, y), row in zip(part, out):
                right += tokenizer.decode(row[ids.shape[1]:], skip_special_tokens=True) == sum_answer(x, op, y) + "."
    return dict(questions=len(cases), right=round(right / len(cases), 4))


@torch.no_grad()
def write_golden(out, tokenizer, model, steps=48):
    golden = dict(model="demo", stored_dtype="bfloat16", reference="transformers, eager attention, float32 over the stored bf16 weights",
                  weights_sha256=hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
                  conventions="greedy_ids: 48 arg-max ids, not stopped at end tokens; greedy_margins: largest minus second-largest logit",
                  tolerance="greedy ids equal token for token, except that a step with a margin below 0.001 may go either way; 16-bit "
                  "activations: equal up to the first step with a margin below 0.25", prompts=[])
    for messages in GOLDEN_CHATS:
        ids = prompt_ids(tokenizer, messages)
        chosen, margins, first = [], [], None
        for _ in range(steps):
            logits = model(input_ids=torch.tensor([ids + chosen]), use_cache=False).logits[0, -1]
            top = torch.topk(logits, 10)
            first = first or [dict(id=int(i), logit=round(float(v), 5)) for v, i in zip(top.values, top.indices)]
            margins.append(round(float(top.values[0] - top.values[1]), 5))
            chosen.append(int(top.indices[0]))
        stop = next((i for i, t in enumerate(chosen) if t in (0, 2)), None)
        golden["prompts"].append(dict(
            messages=[dict(role=r, content=c) for r, c in messages], prompt_ids=ids, top10=first, greedy_ids=chosen, greedy_margins=margins,
            min_margin=min(margins), first_stop_index=stop, greedy_text=tokenizer.decode(chosen[:stop], skip_special_tokens=True)))
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":")).replace('},{"messages"', '},\n{"messages"')
    (out / "golden.json").write_text(text + "\n")


def measure(out, count):
    tokenizer, model = load(out)
    write_golden(out, tokenizer, model)
    scores, wrong = take_exam(tokenizer, model, count)
    report = dict(held_out_questions=scores, sums_to_20=sums(tokenizer, model, 20),
                  held_out_sums_to_20=sums(tokenizer, model, 20, True), held_out_sums_to_99=sums(tokenizer, model, 99, True))
    print(json.dumps(report, indent=2))
    print(json.dumps(wrong, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--tokens", type=int, default=2560, help="tokens per step and worker")
    parser.add_argument("--tops", type=int, nargs="+", default=[10, 20, 20, 50, 99, 99, 99, 99], help="largest operands of sums, drawn evenly")
    parser.add_argument("--focus", type=float, default=0.0, help="share of documents that drill sums and what the user said")
    parser.add_argument("--hold", type=float, default=0.4, help="share of the time before the learning rate begins to fall")
    parser.add_argument("--resume", type=pathlib.Path, help="start from the weights and the tokenizer of this folder")
    parser.add_argument("--bf16", action="store_true", help="compute in bf16 where the processor does so natively")
    parser.add_argument("--exam", action="store_true", help="only measure the folder --out and write its golden.json")
    parser.add_argument("--questions", type=int, default=100, help="held-out questions of each kind")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.exam:
        args.out.mkdir(parents=True, exist_ok=True)
        tokenizer = Tokenizer.from_file(str(args.resume / "tokenizer.json")) if args.resume else train_tokenizer(args.seed)
        model = new_model(args.seed)
        print(f"{sum(p.numel() for p in model.parameters())} parameters, {tokenizer.get_vocab_size()} tokens", flush=True)
        del model
        torch.multiprocessing.spawn(train, (args, tokenizer.to_str()), nprocs=args.workers)
        (args.out / ".rendezvous").unlink(missing_ok=True)
    measure(args.out, args.questions)


if __name__ == "__main__":
    main()
