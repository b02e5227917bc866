"""Writes ``families.json``: what transformers computes, in float32, with the tiny models of ``family_models.py``.

Run it in an environment with torch, transformers >= 5.23, gguf and attrs:

    python make_family_references.py

For every family: the logits after the prompt, 24 greedily chosen ids with the gap between the two largest logits at
each step, so that a test can excuse a tie, and the logits after the last of them.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from family_models import CASES, STEPS, Case, write_folder  # noqa: E402 - found by the line above


@torch.no_grad()
def reference(case: Case, folder: Path) -> dict:
    model, info = AutoModelForCausalLM.from_pretrained(
        write_folder(case, folder), dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), (case.name, info)
    model.eval()
    logits = model(torch.tensor([case.prompt])).logits[0, -1]
    entry = {"name": case.name, "class": type(model).__name__, "logits": _rounded(logits)}
    tokens, gaps = list(case.prompt), []
    for _ in range(STEPS):
        best = torch.topk(logits, 2)
        tokens.append(int(best.indices[0]))
        gaps.append(round(float(best.values[0] - best.values[1]), 5))
        # Without a cache: nothing but the model's definition is asked.
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return {**entry, "output": tokens[len(case.prompt) :], "gaps": gaps, "last_logits": _rounded(logits)}


def _rounded(logits: torch.Tensor) -> list[float]:
    return [round(float(value), 6) for value in logits]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        entries = [reference(case, Path(folder) / str(index)) for index, case in enumerate(CASES.values())]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (HERE / "families.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
