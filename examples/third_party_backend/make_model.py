"""Make the model folder of this wheel from corpus.txt: a Hugging Face layout whose one tensor is the text's bytes.

python make_model.py
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE / "src" / "ngram_sage" / "model"


def main() -> None:
    text = (HERE / "corpus.txt").read_bytes()
    tensor = {"dtype": "U8", "shape": [len(text)], "data_offsets": [0, len(text)]}
    header = json.dumps({"corpus": tensor}).encode()
    FOLDER.mkdir(exist_ok=True)
    config = {"architectures": ["NgramForCausalLM"], "model_type": "ngram", "vocab_size": 257}
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (FOLDER / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + text)


if __name__ == "__main__":
    main()
