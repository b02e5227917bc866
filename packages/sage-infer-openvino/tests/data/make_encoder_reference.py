"""Writes ``encoders.json``: what sentence-transformers computes with small random encoders.

Run it in an environment with torch, transformers and sentence-transformers (6.2 was used):

    python make_encoder_reference.py

The encoders' weights and folders are made by ``encoder_toy.py`` beside this folder, from a seed, here and in the
tests; only what came out is recorded. Vectors and scores are in float32, rounded to 6 digits.
"""

import json
import sys
import tempfile
from pathlib import Path

from sentence_transformers import CrossEncoder, SentenceTransformer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from encoder_toy import DOCUMENTS, EMBEDDERS, QUERY, RERANKERS, TEXTS, write_encoder  # noqa: E402


def rounded(rows) -> list:
    return [[round(float(x), 6) for x in row] for row in rows]


def main() -> None:
    data = {"texts": {}, "scores": {}, "prompted": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in EMBEDDERS.items():
            path = write_encoder(Path(folder) / name, **options)
            model = SentenceTransformer(str(path), device="cpu")
            data["texts"][name] = rounded(model.encode(TEXTS, prompt=""))
            if model.prompts.get("query"):
                data["prompted"][name] = rounded(model.encode(TEXTS, prompt_name="query"))
        for name, options in RERANKERS.items():
            path = write_encoder(Path(folder) / "rerank" / name, **options)
            model = CrossEncoder(str(path), device="cpu")
            scores = model.predict([(QUERY, document) for document in DOCUMENTS])
            data["scores"][name] = [round(float(score), 6) for score in scores]
    lines = ",\n".join(
        f'"{kind}": {{\n' + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in part.items()) + "\n}"
        for kind, part in data.items()
    )
    (HERE / "encoders.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
