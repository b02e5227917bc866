"""The engine: counts of the character that follows each context, read from a ``.qk`` file (JSON).

A token id is the character's code point; 0 ends a sequence.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from sage_infer.errors import ModelFileError
from sage_infer.schemas import ModelDescriptor, SamplingParams
from sage_infer.specs import EngineMemory, ModelSizes

END, VOCABULARY, LIMIT = 0, 0x110000, 4096


@frozen
class Model:
    order: int
    counts: Mapping[str, Mapping[str, int]]

    def following(self, context: str) -> Mapping[str, int]:
        """Counts after the longest known end of the context."""
        ends = (context[max(0, len(context) - size) :] for size in range(self.order, 0, -1))
        return next((self.counts[end] for end in ends if end in self.counts), self.counts[""])


def train(text: str, order: int = 16) -> str:
    """The ``.qk`` file of a text in which an empty line ends each conversation."""
    text = text.replace("\n\n", "\0")
    counts: dict[str, Counter[str]] = {}
    for at, letter in enumerate(text):
        for size in range(min(order, at) + 1):
            context = text[at - size : at]
            if "\0" not in context:
                counts.setdefault(context, Counter())[letter] += 1
    return json.dumps({"format": "quokka-1", "order": order, "counts": counts})


def load(path: str) -> Model:
    """Read a file; raises ``ModelFileError`` with its name where it is no model."""
    try:
        data: Any = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is no Quokka model: {error}; expected a .qk file") from None
    if not isinstance(data, dict) or data.get("format") != "quokka-1":
        raise ModelFileError(f"{path} is no Quokka model: expected the format quokka-1")
    order, counts = data.get("order"), data.get("counts")
    if type(order) is not int or not 1 <= order <= 32:
        raise ModelFileError(f"{path}: order must be an integer from 1 to 32, got {order!r}")
    if not isinstance(counts, dict) or "" not in counts:
        raise ModelFileError(f"{path}: counts must be an object with the empty context")
    for context, row in counts.items():
        if not (isinstance(row, dict) and row and all(map(_is_count, row, row.values()))):
            raise ModelFileError(
                f"{path}: counts[{context!r}] must have a positive integer for each character"
            )
    return Model(order, counts)


def _is_count(letter: str, count: Any) -> bool:
    return len(letter) == 1 and type(count) is int and 0 < count < 2**53


def choose(counts: Mapping[str, int], params: SamplingParams, draw: random.Random) -> int:
    """A token: temperature first, then ``top_k``, then ``top_p``."""
    ranked = sorted(counts, key=lambda letter: (-counts[letter], letter))
    if params.temperature == 0:
        return ord(ranked[0])
    most = math.log(counts[ranked[0]])
    weights = [math.exp((math.log(counts[letter]) - most) / params.temperature) for letter in ranked]
    weights = weights[: params.top_k or None]
    kept, total, sum_of_kept = 0, sum(weights), 0.0
    while kept < len(weights) and sum_of_kept < params.top_p * total:
        sum_of_kept += weights[kept]
        kept += 1
    return ord(draw.choices(ranked[: max(kept, 1)], weights[: max(kept, 1)])[0])


def sizes(*, model: ModelDescriptor) -> ModelSizes:
    load(model.model_path)
    embedding = model.model_type == "embedding"
    return ModelSizes(
        weight_bytes=20 * Path(model.model_path).stat().st_size,  # Python's objects for the text of the file
        max_sequence_length=LIMIT,
        embedding_dim=128 if embedding else None,
    )


def memory(*, model: ModelDescriptor, options: Mapping[str, Any], hardware: str) -> EngineMemory:
    return EngineMemory(overhead_bytes=2**20, max_batch_size=8)


if __name__ == "__main__":
    corpus, file = map(Path, sys.argv[1:])
    file.write_text(train(corpus.read_text("utf-8")))
