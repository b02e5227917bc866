"""The engine: counts of the character that follows each context, read from a ``.qk`` file (JSON).

A token id is the character's code point; 0 ends a sequence.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from attrs import frozen
from sage_infer.errors import ModelFileError
from sage_infer.specs import EngineMemory, ModelSizes

END, VOCABULARY, LIMIT = 0, 0x110000, 4096


@frozen
class Counts:
    """How often each character followed each context of up to ``order`` characters."""

    order: int
    table: dict

    def following(self, context):
        """Counts by token id after the longest known end of the context."""
        ends = (context[max(0, len(context) - size) :] for size in range(self.order, 0, -1))
        known = next((end for end in ends if end in self.table), "")
        return {ord(letter): count for letter, count in self.table[known].items()}

    def seen(self, context):
        return sum(self.table.get(context, {}).values())


def train(text, order=16):
    """The ``.qk`` file of a text in which an empty line ends each conversation."""
    text = text.replace("\n\n", "\0")
    table = {}
    for at, letter in enumerate(text):
        for size in range(min(order, at) + 1):
            context = text[at - size : at]
            if "\0" not in context:
                table.setdefault(context, Counter())[letter] += 1
    return json.dumps({"format": "quokka-1", "order": order, "counts": table})


def load(path):
    """Read a file; raises ``ModelFileError`` with its name where it is no model."""
    try:
        data = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is no Quokka model: {error}; expected a .qk file") from None
    if not isinstance(data, dict) or data.get("format") != "quokka-1":
        raise ModelFileError(f"{path} is no Quokka model: expected the format quokka-1")
    order, table = data.get("order"), data.get("counts")
    if type(order) is not int or not 1 <= order <= 32:
        raise ModelFileError(f"{path}: order must be an integer from 1 to 32, got {order!r}")
    if not isinstance(table, dict) or "" not in table:
        raise ModelFileError(f"{path}: counts must be an object with the empty context")
    for context, row in table.items():
        if not (isinstance(row, dict) and row and all(map(_is_count, row, row.values()))):
            raise ModelFileError(
                f"{path}: counts[{context!r}] must have a positive integer for each character"
            )
    return Counts(order, table)


def _is_count(letter, count):
    return len(letter) == 1 and type(count) is int and 0 < count < 2**53


def sizes(*, model):
    load(model.model_path)
    return ModelSizes(
        weight_bytes=20 * Path(model.model_path).stat().st_size,  # Python's objects for the text of the file
        max_sequence_length=LIMIT,
        embedding_dim=128 if model.model_type == "embedding" else None,
    )


def memory(*, model, options, hardware):
    return EngineMemory(overhead_bytes=2**20, max_batch_size=8)


if __name__ == "__main__":
    corpus, file = map(Path, sys.argv[1:])
    file.write_text(train(corpus.read_text("utf-8")))
