#!/usr/bin/env python3
"""Makes one tokenizer for each family of published models, at a size that matters: the family's own stack of components (normalizer,
pre-tokenizer with its regular expressions, model options, added tokens, post-processor, decoder) over a vocabulary trained here.

What is trained on: the texts of make_tokenizer_goldens.py, the texts that compare_tokenizer.py draws (seed 99) and the documents and
sources of this repository; the same tree gives the same tokenizers. tools/verify_tokenizers.py makes and compares them all.

Requirements:  pip install "tokenizers>=0.22" sentencepiece protobuf transformers
Use:           python3 tools/make_family_tokenizers.py OUT_FOLDER
"""
import argparse
import collections
import json
import pathlib
import random
import sys
import tempfile

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import compare_tokenizer  # noqa: E402
import make_tokenizer_goldens as goldens  # noqa: E402
from make_tokenizer_goldens import CL100K, DEEPSEEK3, LLAMA3, O200K, QWEN2, byte_level, replace, sequence, split, split_at, template  # noqa: E402

PIECES = 8000
CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*")
TEKKEN = CASED + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PHI4 = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
DEEPSEEK2 = [r"[\r\n]",  # letters with case, by their ranges as published
             r"\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f"
             r"\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
             r"\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
             r"\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
             r"\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
             r"\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
             r"\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
             "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
             "\U0001e900-\U0001e943]+",
             "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"]
DIGITS = {"type": "Digits", "individual_digits": True}
SP_NORMALIZER = sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"))
SP_DECODER = sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0})
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def repository_texts():
    root = pathlib.Path(__file__).resolve().parent.parent
    files = [file for pattern in ("docs/*.md", "models/*.cc", "tools/*.py") for file in sorted(root.glob(pattern))]
    return [part for file in files for part in file.read_text().split("\n\n")]


def corpus():
    rng = random.Random(99)
    return goldens.CORPUS * 5 + repository_texts() + [compare_tokenizer.make_text(rng, [], False) for _ in range(20000)]


def with_common_characters(texts, kept=1500):
    """The texts without rare characters, for vocabularies in which every character is a piece."""
    counts = collections.Counter(c for text in texts for c in text)
    common = {c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:kept]}
    return ["".join(c for c in text if c in common) for text in texts]


class Maker:
    def __init__(self):
        self.texts = corpus()
        self.common = with_common_characters(self.texts)

    def bpe(self, normalizer, pre_tokenizer, alphabet, front=(), **options):
        """A "model" trained with the given components, `front` first."""
        tokenizer = Tokenizer(models.BPE())
        parts = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
                 "post_processor": None, "decoder": None, "model": json.loads(tokenizer.to_str())["model"]}
        tokenizer = Tokenizer.from_str(json.dumps(parts))
        trainer = trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=alphabet, show_progress=False, max_token_length=24)
        tokenizer.train_from_iterator(self.texts if alphabet else self.common, trainer)
        return goldens.with_front(json.loads(tokenizer.to_str())["model"], front) | options

    def level(self, tokens, pre, normalizer=None, post=None, decoder=None, front=(), **options):
        """A byte-level BPE family. post: None, or the token that begins a text."""
        model = self.bpe(normalizer, pre, pre_tokenizers.ByteLevel.alphabet(), front, **options)
        entries = goldens.added(model, *tokens)
        if isinstance(post, str):
            post = sequence("processors", byte_level(), template(post, "A", **{post: next(e["id"] for e in entries if e["content"] == post)}))
        return self.whole(model, entries, normalizer, pre, post, decoder or byte_level())

    def pieces(self, tokens, front, normalizer, pre, post, decoder, training, **options):
        """A SentencePiece-like BPE family with byte fallback; `training` holds the components it is trained with."""
        model = self.bpe(*training, [], list(front) + BYTES, unk_token="<unk>", fuse_unk=True, byte_fallback=True, **options)
        return self.whole(model, goldens.added(model, *tokens), normalizer, pre, post, decoder)

    @staticmethod
    def whole(model, added, normalizer, pre, post, decoder):
        return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre,
                "post_processor": post, "decoder": decoder, "model": model}


def chat(*names, flags="s"):
    return [(name, flags) for name in names]


def sp_families(make):
    marked = (SP_NORMALIZER, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True})
    front = ["<unk>", "<s>", "</s>"]
    bos = template("<s>", "A", **{"<s>": 1})
    yield "llama-2", make.pieces(chat(*front), front, SP_NORMALIZER, None, bos, SP_DECODER, marked)
    tools = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    yield "mistral-v3", make.pieces(chat(*front, *tools), front + tools, None, first, bos, SP_DECODER, marked)
    turns = ["<|assistant|>", "<|user|>", "<|end|>", "<|system|>", "<|placeholder1|>"]
    yield "phi-3", make.pieces([("<unk>", "s"), ("<s>", "s"), ("</s>", "r"), ("<|endoftext|>", "s")] + chat(*turns, flags="sr"), front,
                               SP_NORMALIZER, None, template("A"), SP_DECODER, marked)
    gemma = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    runs = [("\n" * n, "") for n in range(2, 32)] + [("▁" * n, "") for n in range(2, 32)] + [("\t" * n, "") for n in range(2, 8)]
    unused = [(f"<unused{n}>", "") for n in range(99)] + [(tag, "") for tag in ("<table>", "<b>", "</b>", "<code>", "</code>", "<h1>")]
    for name, extra in (("gemma-2", []), ("gemma-3", [(f"<unused{n}>", "") for n in range(99, 6242)])):
        yield name, make.pieces(chat(*gemma, "<start_of_turn>", "<end_of_turn>") + runs + unused + extra, gemma, replace(" ", "▁"),
                                split_at(" ", "MergedWithPrevious"), template("<bos>", "A", **{"<bos>": 2}),
                                sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}),
                                (replace(" ", "▁"), split_at("▁", "MergedWithNext")))


def level_families(make):
    def cut(*parts, last=None):
        return sequence("pretokenizers", *parts, last or byte_level())

    digits = cut(DIGITS, last=byte_level(True))
    im = chat("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tags = chat("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>", flags="")
    spaces = [(" " * n, "n") for n in range(24, 1, -1)]
    llama3 = chat("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
    yield "llama-3", make.level(llama3, cut(split(LLAMA3)), None, "<|begin_of_text|>", ignore_merges=True)
    tekken = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[SYSTEM_PROMPT]"]
    yield "mistral-tekken", make.level(chat(*tekken), cut(split(TEKKEN)), None, "<s>", front=tekken, ignore_merges=True)
    yield "qwen-2", make.level(im, cut(split(QWEN2)), {"type": "NFC"}, byte_level())
    yield "qwen-3", make.level(im + tags, cut(split(QWEN2)), {"type": "NFC"}, byte_level())
    yield "phi-2", make.level([("<|endoftext|>", "s")] + [(" " * n, "n") for n in range(31, 1, -1)] + [("\t" * n, "n") for n in range(9, 1, -1)],
                              byte_level(True), None, byte_level())
    yield "phi-4", make.level(chat("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|fim_prefix|>", flags="slr"), cut(split(PHI4)), None, byte_level())
    yield "phi-4-mini", make.level(chat("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", flags="sr"), cut(split(O200K)), None, byte_level())
    yield "smollm", make.level(im, digits)
    yield "olmo-2", make.level(im, cut(split(LLAMA3, "Removed", True)), None, None)
    yield "cl100k", make.level(im, cut(split(CL100K)), None, byte_level())
    yield "granite-3", make.level(chat("<|end_of_text|>", "<fim_prefix>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"), digits, None, byte_level())
    yield "starcoder-2", make.level(chat("<|endoftext|>", "<fim_prefix>", "<repo_name>", "<file_sep>", "<NAME>", "<issue_start>"), digits)
    yield "gpt-2", make.level([("<|endoftext|>", "sn")], byte_level(True), None, byte_level())
    yield "gpt-neox", make.level(chat("<|endoftext|>", "<|padding|>") + spaces, byte_level(True), {"type": "NFC"}, byte_level(),
                                 front=["<|endoftext|>", "<|padding|>"])
    yield "deepseek-v2", make.level(chat("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>") + chat("<｜fim▁hole｜>", "<｜User｜>", flags=""),
                                    cut(*[split(regex) for regex in DEEPSEEK2], DIGITS), sequence("normalizers"), "<｜begin▁of▁sentence｜>")
    yield "deepseek-coder", make.level(chat("<｜begin▁of▁sentence｜>", "<|EOT|>"), cut(
        split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), DIGITS), sequence("normalizers"), "<｜begin▁of▁sentence｜>")
    yield "deepseek-v3", make.level(chat("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>") + chat("<｜User｜>", "<think>", flags=""), cut(
        split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"), split(DEEPSEEK3)), sequence("normalizers"), "<｜begin▁of▁sentence｜>")
    yield "gpt-oss", make.level(chat("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>"), cut(split(O200K)),
                                None, byte_level(), ignore_merges=False)
    cohere = ["<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>"]
    yield "cohere", make.level(chat(*cohere, "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>") + chat("<|START_THINKING|>", flags=""), digits, {"type": "NFC"},
                               "<BOS_TOKEN>", byte_level(prefix=True), front=cohere)
    falcon = ["<|endoftext|>", ">>ABSTRACT<<", ">>QUESTION<<"]
    yield "falcon", make.level(chat(*falcon), sequence(
        "pretokenizers", {"type": "Punctuation", "behavior": "Contiguous"}, byte_level(True), {"type": "Digits", "individual_digits": False},
        split("[0-9][0-9][0-9]")), front=falcon)
    yield "falcon-3", make.level(chat("<|pad|>", "<|endoftext|>", "<|system|>", ">>CLS<<"), cut(split(LLAMA3)), None, None, ignore_merges=True)


def sentencepiece_parts(texts, rules):
    """(the Precompiled normalizer, [(piece, score)]) of a Unigram model that SentencePiece trains with its rules of that name."""
    with tempfile.TemporaryDirectory() as folder:
        text = pathlib.Path(folder) / "text"
        text.write_text("\n".join(line for part in texts for line in part.split("\n")))
        sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=f"{folder}/m", vocab_size=PIECES, hard_vocab_limit=False, minloglevel=2,
                                                 normalization_rule_name=rules, num_threads=1)
        proto = goldens.sentencepiece_proto.ModelProto()
        proto.ParseFromString(pathlib.Path(f"{folder}/m.model").read_bytes())
        pieces = [(piece.piece, piece.score) for piece in proto.pieces if piece.type == 1]
        return normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap), pieces


def other_families(make):
    def unigram(rules, more, pre, special, post, extra=()):
        charsmap, pieces = sentencepiece_parts(make.common, rules)
        tokenizer = Tokenizer(models.Unigram([(piece, 0.0) for piece in special] + pieces, special.index("<unk>"), False))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Sequence([charsmap, *more]) if more else charsmap, pre
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False, lstrip=t == "<mask>") for t in [*special, *extra]])
        tokenizer.decoder, tokenizer.post_processor = decoders.Metaspace(), post
        return json.loads(tokenizer.to_str())

    metaspace, words = pre_tokenizers.Metaspace(), pre_tokenizers.WhitespaceSplit()
    ends = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    yield "t5", unigram("nmt_nfkc", [], pre_tokenizers.Sequence([words, metaspace]), ["<pad>", "</s>", "<unk>"], ends,
                        [f"<extra_id_{n}>" for n in range(99, -1, -1)])
    stripped = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    both = processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    yield "xlm-r", unigram("nmt_nfkc", stripped, metaspace, ["<s>", "<pad>", "</s>", "<unk>"], both, ["<mask>"])
    yield "unigram-lower", unigram("nmt_nfkc_cf", stripped, pre_tokenizers.Sequence([words, metaspace]),
                                   ["<s>", "<pad>", "</s>", "<unk>"], processors.RobertaProcessing(("</s>", 2), ("<s>", 0)))
    for name, options in (("bert", {}), ("bert-cased", {"lowercase": False, "strip_accents": None})):
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(**options), pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer.train_from_iterator(make.common, trainers.WordPieceTrainer(vocab_size=PIECES, show_progress=False, special_tokens=special))
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                                 special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        tokenizer.decoder = decoders.WordPiece()
        yield name, json.loads(tokenizer.to_str())


def families():
    make = Maker()
    for group in (other_families, sp_families, level_families):
        yield from group(make)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    for name, tokenizer in families():
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n")
        print(f"{name}: {len(tokenizer['model']['vocab'])} pieces", flush=True)


if __name__ == "__main__":
    main()
