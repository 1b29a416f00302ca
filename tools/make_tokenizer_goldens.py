#!/usr/bin/env python3
"""Makes tests/data/tokenizers: small tokenizers, one for each family of published ones, with what the Python `tokenizers` package does.

Each folder is one stack of components (normalizer, pre-tokenizer, BPE, post-processor, decoder, added tokens) with the regular expressions
that the published tokenizers use, over a vocabulary of a few hundred pieces trained here on the text below. texts.json holds the
texts; each golden.json the ids of each, what the post-processor puts around them ("prefix", "suffix") and, where it is not the text
itself, the decoded text ("decoded" keeps special tokens, "skipped" leaves them out).

The folders sp_* hold SentencePiece .model files, with what the `sentencepiece` package does.

Requirements:  pip install "tokenizers>=0.22" sentencepiece protobuf transformers
Use:           python3 tools/make_tokenizer_goldens.py [--out tests/data/tokenizers]
"""
import argparse
import copy
import json
import pathlib
import random
import sys
import tempfile

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_proto

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import compare_tokenizer  # noqa: E402  (the texts come from the same generator)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's what they're doing, and we've seen that they'll do it again; I'd say so, don't you?",
    "Once upon a time there was a little house by the sea. The children who lived there were happy, and the sun was shining on the water.",
    "All human beings are born free and equal in dignity and rights. Everyone has the right to life, liberty and the security of person.",
    "def main(args):\n    for item in items:\n        print(item, end='')\n    return {'name': value, \"list\": [1, 2, 3]}\n\n#include <vector>\n",
    "In 1999 there were 12345 of them; 3.14159 is near 22/7, and 1,000,000 is a million. Call 555-0123 at 10:30 on 2024-02-29.\n\n",
    "Die größten Straßen über dem Fluss. Où est la bibliothèque? El niño comió mañana. Ação e coração. Žluťoučký kůň pěl ďábelské ódy.",
    "Все люди рождаются свободными и равными в своём достоинстве и правах. Съешь же ещё этих мягких французских булок.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι. כל בני אדם נולדו בני חורין. يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "人人生而自由,在尊严和权利上一律平等。すべての人間は、生まれながらにして自由である。모든 인간은 태어날 때부터 자유롭다.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में स्वतन्त्रता प्राप्त है। มนุษย์ทั้งหลายเกิดมามีอิสระ 👍 😀 🎉 ❤️",
    "HTTPServer XMLHttpRequest camelCase snake_case UPPER lower <html><body class=\"x\">&amp;</body></html> https://example.com/a?b=c#d",
    "        indented\n\t\ttabs\n    four  two   three    four     five\n\n\n   \r\nwindows\r\n\r\n",
] * 3

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
DEEPSEEK3 = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
             r"""|\s*[\r\n]+|\s+(?!\S)|\s+""")


def byte_level(use_regex=False, prefix=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def split_at(text, behavior, invert=False):
    return {"type": "Split", "pattern": {"String": text}, "behavior": behavior, "invert": invert}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def replace(old, new):
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def template(*parts, **ids):
    special = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ids.items()}
    single = [{"Sequence": {"id": "A", "type_id": 0}} if p == "A" else {"SpecialToken": {"id": p, "type_id": 0}} for p in parts]
    return {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": special}


def train(normalizer, pre_tokenizer, size, alphabet):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, max_token_length=16))
    return json.loads(tokenizer.to_str())["model"]


def with_front(model, front):
    """The same model with `front` as its first ids."""
    model = copy.deepcopy(model)
    pieces = list(front) + [p for p, _ in sorted(model["vocab"].items(), key=lambda kv: kv[1]) if p not in front]
    model["vocab"] = {piece: i for i, piece in enumerate(pieces)}
    return model


def added(model, *tokens):
    """added_tokens; each token is (content, flags): s special, n normalized, l lstrip, r rstrip, w single_word."""
    entries, next_id = [], len(model["vocab"])
    for content, flags in tokens:
        token_id = model["vocab"].get(content)
        if token_id is None:
            token_id, next_id = next_id, next_id + 1
        entries.append({"id": token_id, "content": content, "single_word": "w" in flags, "lstrip": "l" in flags, "rstrip": "r" in flags,
                        "normalized": "n" in flags, "special": "s" in flags})
    return entries


def families():
    level = train(None, pre_tokenizers.Sequence([pre_tokenizers.Split(__import__("tokenizers").Regex(LLAMA3), "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
                  600, pre_tokenizers.ByteLevel.alphabet())
    marked = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = train(marked, pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never"), 500, [])
    crossing = train(normalizers.Replace(" ", "▁"), None, 500, [])
    words = train(normalizers.Lowercase(), pre_tokenizers.Whitespace(), 350, [])
    front = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    sp = with_front(pieces, front + byte_tokens)
    sp.update(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    specials = [(t, "s") for t in front]
    sp_decoder = sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
                          {"type": "Strip", "content": " ", "start": 1, "stop": 0})
    bos = template("<s>", "A", **{"<s>": 1})
    sp_normalizer = sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"))

    def make(model, tokens, normalizer=None, pre=None, post=None, decoder=None, **fields):
        model = dict(model, **fields)
        return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added(model, *tokens), "normalizer": normalizer,
                "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model}

    yield "llama2", make(sp, specials, sp_normalizer, None, bos, sp_decoder)
    no_bytes = with_front(pieces, front)
    yield "no_byte_fallback", make(no_bytes, specials, sp_normalizer, None, bos, sp_decoder, unk_token="<unk>", fuse_unk=True)
    mistral = with_front(pieces, front + ["[INST]", "[/INST]", "[TOOL_CALLS]"] + byte_tokens)
    mistral.update(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    yield "mistral", make(mistral, specials + [("[INST]", "s"), ("[/INST]", "s"), ("[TOOL_CALLS]", "s")], None,
                          {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}, bos, sp_decoder)
    gemma = with_front(crossing, ["<pad>", "<eos>", "<bos>", "<unk>"] + byte_tokens)
    gemma.update(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    turns = [("<pad>", "s"), ("<eos>", "s"), ("<bos>", "s"), ("<unk>", "s"), ("<start_of_turn>", "s"), ("<end_of_turn>", "s")]
    runs = [("\n" * n, "") for n in range(2, 12)] + [("▁" * n, "") for n in range(2, 12)] + [(f"<unused{n}>", "") for n in range(20)]
    yield "gemma", make(gemma, turns + runs, replace(" ", "▁"), split_at(" ", "MergedWithPrevious"), template("<bos>", "A", **{"<bos>": 2}),
                        sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}))
    chat = [("<|endoftext|>", "s"), ("<|im_start|>", "s"), ("<|im_end|>", "s"), ("<tool_call>", ""), ("</tool_call>", "")]
    yield "qwen2", make(level, chat, {"type": "NFC"}, sequence("pretokenizers", split(QWEN2), byte_level()), byte_level(), byte_level())
    llama3_ids = [("<|begin_of_text|>", "s"), ("<|end_of_text|>", "s"), ("<|start_header_id|>", "s"), ("<|end_header_id|>", "s"), ("<|eot_id|>", "s")]
    yield "llama3", make(level, llama3_ids, None, sequence("pretokenizers", split(LLAMA3), byte_level()),
                         sequence("processors", byte_level(), template("<|begin_of_text|>", "A", **{"<|begin_of_text|>": len(level["vocab"])})),
                         byte_level(), ignore_merges=True)
    gpt2 = make(level, [("<|endoftext|>", "sn")], None, byte_level(True), byte_level(), byte_level())
    for part in ("pre_tokenizer", "post_processor", "decoder"):
        del gpt2[part]["use_regex"]
    del gpt2["model"]["type"]  # as old files have it, with merges as "a b"
    gpt2["model"]["merges"] = [" ".join(m) for m in gpt2["model"]["merges"]]
    yield "gpt2", gpt2
    yield "phi2", make(level, [("<|endoftext|>", "sn")] + [(" " * n, "n") for n in range(31, 1, -1)] + [("\t" * n, "n") for n in range(9, 1, -1)],
                       None, byte_level(True), byte_level(), byte_level())
    yield "falcon", make(level, [("<|endoftext|>", "s")], None,
                         sequence("pretokenizers", {"type": "Punctuation", "behavior": "Contiguous"}, byte_level(True),
                                  {"type": "Digits", "individual_digits": False}, split("[0-9][0-9][0-9]")), None, byte_level())
    yield "smollm", make(level, chat, None, sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, byte_level(True)), None,
                         byte_level())
    yield "o200k", make(level, [("<|startoftext|>", "s"), ("<|return|>", "s")], None, sequence("pretokenizers", split(O200K), byte_level()),
                        None, byte_level(), ignore_merges=True)
    yield "cl100k", make(level, chat, None, sequence("pretokenizers", split(CL100K), byte_level()), byte_level(), byte_level())
    yield "deepseek3", make(level, [("<｜begin▁of▁sentence｜>", "s"), ("<｜end▁of▁sentence｜>", "s")], sequence("normalizers"),
                            sequence("pretokenizers", split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"), split(DEEPSEEK3), byte_level()),
                            byte_level(prefix=True), byte_level(prefix=True))
    t5 = with_front(pieces, ["<unk>", "</s>"])
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    yield "metaspace", make(t5, [("<unk>", "s"), ("</s>", "s")], sequence("normalizers", {"type": "NFKC"}, strip), metaspace,
                            template("A", "</s>", **{"</s>": 1}), metaspace, unk_token="<unk>")
    old = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    yield "metaspace_old", make(t5, [("<unk>", "s"), ("</s>", "s")], {"type": "NFKD"}, old, None, old, unk_token="<unk>")
    flags = [("<s>", "s"), ("<mask>", "sl"), ("<sep>", "sr"), ("<both>", "lr"), ("word", "w"), ("Hello", "n"), ("UPPER", "nw"), ("Don't", "nlr"), ("▁", "n")]
    yield "added_tokens", make(with_front(words, ["<unk>"]), [("<unk>", "s")] + flags, sequence("normalizers", {"type": "NFD"}, {"type": "Lowercase"}),
                               {"type": "Whitespace"}, None, None, unk_token="<unk>", fuse_unk=False)
    yield "splits", make(with_front(words, ["<unk>"]), [("<unk>", "s")], sequence("normalizers", {"type": "StripAccents"}, {"type": "Lowercase"}, {
        "type": "Replace", "pattern": {"Regex": r"(\d)\s+|[!?]{2,}"}, "content": "#"}),
        sequence("pretokenizers", {"type": "WhitespaceSplit"}, split_at("e", "MergedWithPrevious"), split_at("-", "MergedWithNext"),
                 split(r"[aeiou]+", "Contiguous"), split(r"[a-z]+", "Removed", True), split(r"t", "MergedWithNext", True)),
        None, sequence("decoders", {"type": "Fuse"}), unk_token="<unk>", fuse_unk=True)
    suffix = train(None, pre_tokenizers.Whitespace(), 300, [])
    yield "end_of_word", make(suffix_model(suffix), [("<|end|>", "s")], None, {"type": "Whitespace"}, None, sequence("decoders", replace("</w>", " ")),
                              end_of_word_suffix="</w>", unk_token="<|end|>")


RULES = {"ﬁ": "fi", "ﬀ": "ff", "Ａ": "A", "Ｂ": "B", "Ｃ": "C", "１": "1", "２": "2", "３": "3", "①": "1", "½": "1/2", "…": "...", "e\u0301": "é",
         "\u00a0": " ", "\u3000": " ", "\t": " ", "\n": " ", "\r": " ", "\u200b": "", "ﾊ": "ハ", "ﷺ": "صلى الله عليه وسلم", "A": "a", "A\u0301": "á"}


def sentencepiece_model(**options):
    """A .model trained on the corpus, with the small charsmap above."""
    with tempfile.TemporaryDirectory() as folder:
        rules = pathlib.Path(folder) / "rules.tsv"
        rules.write_text("".join(" ".join(f"{ord(c):X}" for c in a) + "\t" + " ".join(f"{ord(c):X}" for c in b) + "\n" for a, b in RULES.items()))
        text = pathlib.Path(folder) / "text"
        text.write_text("\n".join(line for part in CORPUS for line in part.split("\n")))
        if options.pop("mapped", False):
            options["normalization_rule_tsv"] = str(rules)
        else:
            options["normalization_rule_name"] = "identity"
        sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=f"{folder}/m", hard_vocab_limit=False, minloglevel=2, **options)
        return pathlib.Path(f"{folder}/m.model").read_bytes()


def other_models():
    """Unigram and WordPiece, and what goes with them."""
    proto = sentencepiece_proto.ModelProto()
    proto.ParseFromString(sentencepiece_model(model_type="unigram", vocab_size=300, mapped=True, character_coverage=0.98))
    charsmap = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)

    def unigram(normalizer, pre_tokenizer, special, decoder, post):
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
        tokenizer.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=400, show_progress=False, unk_token="<unk>", special_tokens=special))
        tokenizer.decoder, tokenizer.post_processor = decoder, post
        return json.loads(tokenizer.to_str())

    ends = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    t5 = unigram(charsmap, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]), ["<pad>", "</s>", "<unk>"],
                 decoders.Metaspace(), ends)
    yield "t5", t5
    yield "xlmr", unigram(normalizers.Sequence([charsmap, normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]),
                          pre_tokenizers.Metaspace(), ["<s>", "<pad>", "</s>", "<unk>"], decoders.Metaspace(),
                          processors.RobertaProcessing(("</s>", 2), ("<s>", 0)))
    whole = copy.deepcopy(t5)
    whole["model"]["vocab"] += [[f"<0x{b:02X}>", 0.0] for b in range(256)]
    whole["model"]["byte_fallback"] = True
    whole.update(normalizer={"type": "Nmt"}, pre_tokenizer=None, decoder=sequence("decoders", {"type": "ByteFallback"}, {"type": "Fuse"}))
    yield "unigram_bytes", whole
    for name, options in (("bert", {}), ("bert_cased", {"lowercase": False, "handle_chinese_chars": False})):
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(**options), pre_tokenizers.BertPreTokenizer()
        tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=400, show_progress=False,
                                                                        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
        tokenizer.post_processor, tokenizer.decoder = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)), decoders.WordPiece()
        yield name, json.loads(tokenizer.to_str())
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.CharDelimiterSplit(" "), pre_tokenizers.FixedLength(7)])
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=350, show_progress=False, special_tokens=["<unk>"], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder()
    yield "bpe_decoder", json.loads(tokenizer.to_str())


def write_sentencepiece(out, samples):
    shapes = {"sp_bpe": dict(model_type="bpe", vocab_size=650, byte_fallback=True, remove_extra_whitespaces=False, user_defined_symbols=["<tool_call>", "UPPER"],
                             control_symbols=["[INST]"], character_coverage=0.98),
              "sp_unigram": dict(model_type="unigram", vocab_size=650, byte_fallback=True, mapped=True, character_coverage=0.98),
              "sp_unigram_plain": dict(model_type="unigram", vocab_size=400, add_dummy_prefix=False, character_coverage=0.98)}
    # Special tokens written in a text are text to SentencePiece, and tokens to everyone else: those texts are compared elsewhere.
    special = ("<s>", "</s>", "<unk>", "[INST]", "\0", "UPPER", "<tool_call>")
    for name, options in shapes.items():
        model = sentencepiece_model(**options)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        (out / name).mkdir(exist_ok=True)
        (out / name / "tokenizer.model").write_bytes(model)
        # A folder with tokenizer code of its own: the one kind for which SentencePiece's own rules hold.
        (out / name / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.Tokenizer", null]}}\n')
        cases = []
        for sample in samples:
            ids = [] if any(s in sample for s in special) else processor.encode(sample)
            decoded = processor.decode([i for i in ids if not processor.is_unknown(i)])
            case = {"ids": ids} | ({"skipped": decoded} if decoded != sample else {}) | ({} if ids else {"omitted": True})
            cases.append(json.dumps(case, ensure_ascii=False, separators=(",", ":")))
        joined = ",\n".join(cases)
        (out / name / "golden.json").write_text(f'{{"prefix":[{processor.bos_id()}],"suffix":[],"cases":[\n{joined}]}}\n')
        print(f"{name}: {processor.get_piece_size()} pieces, {sum(f.stat().st_size for f in (out / name).iterdir())} bytes")


def suffix_model(model):
    """Every piece also with "</w>", and every merge also in the form that ends a word (tried first)."""
    model = copy.deepcopy(model)
    pieces = list(model["vocab"])
    model["vocab"] = {p: i for i, p in enumerate(pieces + [p + "</w>" for p in pieces] + ["<|end|>"])}
    model["merges"] = [m for a, b in model["merges"] for m in ([a, b + "</w>"], [a, b])]
    return model


def texts(special):
    rng = random.Random(20)
    fixed = [c for c in CORPUS[4:12]] + compare_tokenizer.ODD + compare_tokenizer.SPACES + [
        "Hello", " Hello", "  Hello", "Hello world", "hello  world ", "<s>Hello</s>", "<s> Hello </s> x", "a<mask> b <mask>c", "x <sep>  y<sep>z",
        " <both> <both>  <both>", "word words word sword-word", "HELLO hello Don't DON'T don't", "upper UPPER uppercase", "[INST] Hi [/INST] Hello</s>",
        "<|im_start|>user\nHi there!<|im_end|>\n<|im_start|>assistant\n", "<start_of_turn>user\nWrite a poem.<end_of_turn>\n", "<0xE4><0xBD>",
        "\u4f60\u597d\uff0c\u4e16\u754c\uff01 Hello", "1 2 12 123 1234 12345", "it's IT'S It'S we'Re", "\n\n\n\n\n", "a\n\n\n b", "▁▁▁ ▁", "<unused7><unused19>"]
    drawn = [compare_tokenizer.make_text(rng, special, False)[:90] for _ in range(55)]
    return fixed + drawn


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="tests/data/tokenizers")
    out = pathlib.Path(parser.parse_args().out)
    special = ["<s>", "word", "Hello", "UPPER", "<both>", "<start_of_turn>", "\n\n", "<tool_call>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|eot_id|>", "[INST]", "<bos>", "<mask>", "<sep>"]
    samples = texts(special)
    out.mkdir(parents=True, exist_ok=True)
    (out / "texts.json").write_text(json.dumps(samples, ensure_ascii=False, separators=(",\n", ":")) + "\n")
    write_sentencepiece(out, samples)
    for name, tokenizer in [*families(), *other_models()]:
        folder = out / name
        folder.mkdir(exist_ok=True)
        text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
        (folder / "tokenizer.json").write_text(text + "\n")
        reference = Tokenizer.from_str(text)
        empty = reference.encode("", add_special_tokens=True).ids
        cases = []
        for sample in samples:
            ids = reference.encode(sample, add_special_tokens=False).ids
            whole = reference.encode(sample, add_special_tokens=True).ids
            if not cases:  # the first text tells what stands before it
                before = next(n for n in range(len(empty), -1, -1) if whole == empty[:n] + ids + empty[n:])
            assert whole == empty[:before] + ids + empty[before:], (name, sample)
            case = {"ids": ids}
            for key, skip in (("decoded", False), ("skipped", True)):
                decoded = reference.decode(ids, skip_special_tokens=skip)
                if decoded != sample:
                    case[key] = decoded
            cases.append(json.dumps(case, ensure_ascii=False, separators=(",", ":")))
        joined = ",\n".join(cases)
        (folder / "golden.json").write_text(f'{{"prefix":{empty[:before]},"suffix":{empty[before:]},"cases":[\n{joined}]}}\n')
        print(f"{name}: {len(tokenizer['model']['vocab'])} pieces, {sum(f.stat().st_size for f in folder.iterdir())} bytes")


if __name__ == "__main__":
    main()
