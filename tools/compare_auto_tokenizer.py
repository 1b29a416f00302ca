#!/usr/bin/env python3
"""Compares Kvasir with transformers' AutoTokenizer on whole folders of many shapes: only tokenizer.model, with configurations of every
kind beside it, tiktoken vocabularies, added_tokens.json, special_tokens_map.json, tokenizer.json with its configuration.

Small models are trained here (SentencePiece BPE and Unigram, a byte-level vocabulary in tiktoken's format), so nothing is downloaded.

Requirements:  pip install "transformers>=5" "tokenizers>=0.22" sentencepiece protobuf tiktoken
usage: compare_auto_tokenizer.py TOKENIZE_LINES_BINARY [--count N] [--seed S] [--keep FOLDER]
       compare_auto_tokenizer.py --golden tests/data/auto_tokenizer.json    (what AutoTokenizer does, for tokenizer_test)
"""
import argparse
import base64
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import compare_tokenizer  # noqa: E402


def train(out):
    """The models, in a process of its own: sentencepiece's and transformers' protobuf classes do not live together."""
    import make_tokenizer_goldens as goldens
    import sentencepiece
    text = out / "text"
    text.write_text("\n".join(line for part in goldens.CORPUS for line in part.split("\n")))
    common = dict(input=str(text), hard_vocab_limit=False, minloglevel=2, character_coverage=0.98)
    bpe = dict(model_type="bpe", byte_fallback=True, remove_extra_whitespaces=False, normalization_rule_name="identity", vocab_size=900)
    gemma = dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>", add_dummy_prefix=False,
                 user_defined_symbols=["<mask>", "<2mass>", "<start_of_turn>", "<end_of_turn>", "▁▁", "▁▁▁", "▁▁▁▁"])
    t5 = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", normalization_rule_name="nmt_nfkc")
    for name, options in {"llama": bpe | dict(user_defined_symbols=["<tool>", "UPPER"], control_symbols=["[INST]"]), "plain": bpe, "gemma": bpe | gemma,
                          "t5": t5 | dict(model_type="unigram", vocab_size=600),
                          "unigram": dict(model_type="unigram", byte_fallback=True, vocab_size=900, normalization_rule_name="nmt_nfkc",
                                          user_defined_symbols=["<tool>"], control_symbols=["[INST]"])}.items():
        sentencepiece.SentencePieceTrainer.train(model_prefix=str(out / name), **common, **options)
    level = goldens.train(None, goldens.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), 900, goldens.pre_tokenizers.ByteLevel.alphabet())
    alphabet = {c: b for b, c in bytes_to_unicode().items()}
    lines = [base64.b64encode(bytes(alphabet[c] for c in piece)).decode() + f" {rank}\n" for piece, rank in sorted(level["vocab"].items(), key=lambda p: p[1])]
    (out / "tiktoken.model").write_text("".join(lines))


def bytes_to_unicode():
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = {b: chr(b) for b in itself}, 0
    for b in range(256):
        if b not in table:
            table[b], extra = chr(0x100 + extra), extra + 1
    return table


def token(content, special=True, **flags):
    return {"content": content, "special": special, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False} | flags


def shapes(models):
    """(name, vocabulary, its name in the folder, {other file: content})"""
    def sp(name, model, files=None, file="tokenizer.model"):
        return name, models / f"{model}.model", file, files or {}

    def tc(**fields):
        return {"tokenizer_config.json": fields}

    llama = {"tokenizer_class": "LlamaTokenizer"}
    for model in ("llama", "plain", "gemma", "t5", "unigram"):
        yield sp(f"only-model/{model}", model)
    yield sp("config-llama", "llama", {"config.json": {"model_type": "llama"}})
    yield sp("config-mistral", "llama", {"config.json": {"model_type": "mistral"}})
    yield sp("config-gemma2", "gemma", {"config.json": {"model_type": "gemma2"}})
    yield sp("config-t5", "t5", {"config.json": {"model_type": "t5"}}, "spiece.model")
    yield sp("empty-config", "plain", tc())
    yield sp("class-llama", "plain", tc(**llama))
    yield sp("class-llama-fast-bos-eos", "plain", tc(tokenizer_class="LlamaTokenizerFast", add_bos_token=True, add_eos_token=True))
    yield sp("class-llama-legacy", "llama", tc(**llama, legacy=True, add_bos_token=True))
    yield sp("class-llama-legacy-false", "llama", tc(**llama, legacy=False, add_bos_token=True))
    yield sp("class-llama-legacy-null", "llama", tc(**llama, legacy=None))
    yield sp("class-llama-no-prefix", "llama", tc(**llama, add_prefix_space=False))
    yield sp("class-llama-roles", "llama", tc(**llama, add_bos_token=True, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"))
    yield sp("class-llama-config-llama", "plain", tc(**llama, legacy=True, add_bos_token=True) | {"config.json": {"model_type": "llama"}})
    yield sp("class-llama-config-mistral", "plain", tc(**llama, legacy=True, add_bos_token=True) | {"config.json": {"model_type": "mistral"}})
    yield sp("class-llama-config-phi3", "plain", tc(**llama, add_bos_token=False, added_tokens_decoder={
        "2": token("</s>", False, rstrip=True), "SIZE": token("<|endoftext|>"), "SIZE+1": token("<|user|>", rstrip=True)}) | {
            "config.json": {"model_type": "phi3"}})
    yield sp("class-of-config", "plain", {"config.json": {"model_type": "llama", "tokenizer_class": "LlamaTokenizer"}})
    yield sp("class-generic", "llama", tc(tokenizer_class="PreTrainedTokenizerFast", add_bos_token=True))
    yield sp("class-unknown", "llama", tc(tokenizer_class="SomeOwnTokenizer"))
    yield sp("class-gemma", "gemma", tc(tokenizer_class="GemmaTokenizer", add_bos_token=True))
    yield sp("class-gemma-config", "gemma", tc(tokenizer_class="GemmaTokenizer") | {"config.json": {"model_type": "gemma"}})
    yield sp("class-gemma-added", "gemma", tc(tokenizer_class="GemmaTokenizerFast", add_bos_token=True, added_tokens_decoder={
        "2": token("<bos>"), "SIZE": token("<start_of_image>"), "SIZE+1": token("<unused>", False)}))
    yield sp("class-t5", "t5", tc(tokenizer_class="T5Tokenizer"), "spiece.model")
    yield sp("class-t5-extra-10", "t5", tc(tokenizer_class="T5Tokenizer", extra_ids=10), "spiece.model")
    yield sp("class-unigram-generic", "unigram", tc(tokenizer_class="PreTrainedTokenizerFast", add_bos_token=True, add_eos_token=True))
    yield sp("added-tokens-json", "llama", tc(**llama) | {"added_tokens.json": {"<n1>": "SIZE+1", "<n0>": "SIZE"}})
    yield sp("added-tokens-json-roles", "llama", tc(**llama, add_bos_token=True) | {
        "added_tokens.json": {"[PAD]": "SIZE", "<new>": "SIZE+1"},
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]", "unk_token": "<unk>"}})
    yield sp("special-tokens-map", "llama", {"special_tokens_map.json": {"bos_token": "</s>", "eos_token": token("<s>")}} | tc(add_bos_token=True))
    yield sp("added-decoder-and-json", "llama", tc(**llama, added_tokens_decoder={"SIZE": token("<from_decoder>")}) | {
        "added_tokens.json": {"<from_json>": "SIZE"}, "special_tokens_map.json": {"bos_token": "</s>"}})
    yield sp("additional-special-tokens", "llama", tc(**llama, additional_special_tokens=["[INST]"]))
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|eot_id|>"]
    decoder = {f"SIZE+{i}": token(name) for i, name in enumerate(names)}
    yield sp("tiktoken-only", "tiktoken")
    yield sp("tiktoken-decoder", "tiktoken", tc(tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=decoder, bos_token=names[0], eos_token=names[1]))
    yield sp("tiktoken-bos", "tiktoken", tc(tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=decoder, bos_token=names[0], add_bos_token=True))
    yield sp("tiktoken-llama-type", "tiktoken", {"config.json": {"model_type": "llama"}} | tc(added_tokens_decoder=decoder))
    golden = pathlib.Path(__file__).resolve().parent.parent / "tests/data/tokenizers"
    for name in ("llama3", "qwen2", "gpt2", "mistral", "deepseek3", "o200k"):
        yield f"tokenizer-json/{name}", golden / name / "tokenizer.json", "tokenizer.json", tc(tokenizer_class="PreTrainedTokenizerFast")
        yield f"tokenizer-json-ends/{name}", golden / name / "tokenizer.json", "tokenizer.json", tc(
            tokenizer_class="PreTrainedTokenizerFast", add_bos_token=name == "qwen2", add_eos_token=True)


def size_of(vocabulary):
    if vocabulary.name == "tiktoken.model":
        return len(vocabulary.read_text().splitlines())
    if vocabulary.suffix != ".model":
        return 0
    import sentencepiece
    return sentencepiece.SentencePieceProcessor(model_file=str(vocabulary)).get_piece_size()


def with_ids(value, size):
    """SIZE and SIZE+n, in keys and values, become ids after the vocabulary."""
    def number(text):
        return size + int(text[5:] or 0)
    if isinstance(value, dict):
        return {str(number(k)) if k.startswith("SIZE") else k: with_ids(v, size) for k, v in value.items()}
    if isinstance(value, str) and value.startswith("SIZE"):
        return number(value)
    return value


def write(folder, vocabulary, file, files, size):
    folder.mkdir(parents=True)
    shutil.copy(vocabulary, folder / file)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(with_ids(content, size)))


def compare(binary, name, folder, count, seed):
    from transformers import AutoTokenizer
    reference = AutoTokenizer.from_pretrained(str(folder))
    special = [t.content for t in reference.added_tokens_decoder.values()]
    rng = random.Random(seed)
    texts = compare_tokenizer.ODD + compare_tokenizer.SPACES + [" Hello", "  Hello", "Hello", "<s> a</s>b </s> c"]
    texts += [compare_tokenizer.make_text(rng, special, False) for _ in range(count)]
    answers = compare_tokenizer.run_lines(binary, str(folder), [{"text": text} for text in texts])
    bad = 0
    for text, found in zip(texts, answers):
        ids = reference(text)["input_ids"]
        expected = {"special_ids": ids, "ids": reference(text, add_special_tokens=False)["input_ids"],
                    "decoded": reference.decode(ids, clean_up_tokenization_spaces=False),
                    "skipped": reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)}
        wrong = [key for key, value in expected.items() if found.get(key) != value]
        bad += bool(wrong)
        if wrong and bad <= 2:
            print(f"  {name}: {wrong} differ for {text!r}")
            compare_tokenizer.show(wrong[0], expected[wrong[0]], found.get(wrong[0], found))
    print(f"{name} ({type(reference).__name__}): {len(texts)} texts, {bad} differ", flush=True)
    return bad


GOLDEN_SHAPES = ("only-model/llama", "only-model/unigram", "config-gemma2", "class-llama", "class-llama-legacy", "class-llama-no-prefix",
                 "class-llama-config-mistral", "class-llama-config-phi3", "class-of-config", "class-t5-extra-10", "added-tokens-json-roles",
                 "special-tokens-map", "added-decoder-and-json")


def write_golden(out):
    """For each of GOLDEN_SHAPES, over the two models of tests/data/tokenizers: its files, and what AutoTokenizer makes of a few texts."""
    from transformers import AutoTokenizer
    data = pathlib.Path(__file__).resolve().parent.parent / "tests/data/tokenizers"
    texts = ["", "Hello world", " Hello  world ", "<s> a</s>b </s> c", "[INST] Hi [/INST]\nx<tool_call>y", "na\u00efve \uff21\u2460 \u4f60\U0001F44D", "a\tb\n\n  c",
             "<extra_id_3> and <|user|> x<new>[PAD]y<from_decoder>z", "\u2581a \u2581\u2581b", "UPPER lower<0x41>"]
    shapes_out = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, vocabulary, file, files in shapes(pathlib.Path(temporary)):
            if name not in GOLDEN_SHAPES:
                continue
            model = "sp_unigram" if vocabulary.stem in ("unigram", "t5") else "sp_bpe"
            vocabulary = data / model / "tokenizer.model"
            size = size_of(vocabulary)
            write(pathlib.Path(temporary) / name, vocabulary, file, files, size)
            reference = AutoTokenizer.from_pretrained(f"{temporary}/{name}")
            cases = []
            for text in texts:
                ids = reference(text)["input_ids"]
                cases.append({"text": text, "ids": ids, "decoded": reference.decode(ids, clean_up_tokenization_spaces=False),
                              "skipped": reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)})
            shapes_out.append({"name": name, "model": model, "file": file, "files": with_ids(files, size), "cases": cases})
    lines = ",\n".join(json.dumps(shape, ensure_ascii=False) for shape in shapes_out)
    pathlib.Path(out).write_text(f"[{lines}]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?")
    parser.add_argument("--golden")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=pathlib.Path, help="leave the folders here")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(pathlib.Path(args.binary))
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers
    transformers.logging.set_verbosity_error()
    if args.golden:
        write_golden(args.golden)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = args.keep or pathlib.Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, __file__, "--train", str(root)], check=True)
        bad = 0
        for name, vocabulary, file, files in shapes(root):
            folder = root / "folders" / name
            shutil.rmtree(folder, ignore_errors=True)
            write(folder, vocabulary, file, files, size_of(vocabulary))
            try:
                bad += compare(args.binary, name, folder, args.count, args.seed)
            except (subprocess.CalledProcessError, ValueError, OSError) as error:
                print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                bad += 1
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
