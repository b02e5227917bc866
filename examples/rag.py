"""Question answering over documents: an embedding model finds passages, and an LLM answers from them, in one process.

python examples/rag.py ["a question"]
"""

from __future__ import annotations

import asyncio
import sys

from sage_infer import SageInferError, SamplingParams
from sage_infer_hybrid import HybridBackend

DOCUMENTS = [
    "The lighthouse at Brennan Point was built in 1874 and is 32 metres tall.",
    "The ferry from Brennan Point to the islands leaves at nine in the morning, except on Sundays.",
    "Sea kale grows on the shingle beach below the lighthouse and flowers in June.",
    "The museum in the old keeper's house opens from Tuesday to Saturday.",
    "Grey seals can be seen from the northern cliffs in the autumn.",
    "The village bakery sells a dark rye bread that keeps for a week.",
]
QUESTION = "How tall is the lighthouse?"
PASSAGES = 2


async def answer(hybrid: HybridBackend, question: str) -> None:
    vectors = (await hybrid.embed([*DOCUMENTS, question])).vectors
    asked = vectors.pop()
    closeness = [sum(a * b for a, b in zip(vector, asked, strict=True)) for vector in vectors]
    best = sorted(range(len(DOCUMENTS)), key=closeness.__getitem__, reverse=True)[:PASSAGES]
    for index in best:
        print(f"{closeness[index]:.2f}  {DOCUMENTS[index]}")
    context = "\n".join(DOCUMENTS[index] for index in best)
    prompt = f"{context}\n\nAnswer in one sentence from the text above: {question}"
    stream = await hybrid.chat(
        [{"role": "user", "content": prompt}], SamplingParams(temperature=0, max_tokens=48)
    )
    print(f"\n> {question}")
    async for delta in stream:
        print(delta.text, end="", flush=True)
    print()


async def main(question: str) -> int:
    hybrid = HybridBackend(llm_config="smollm2-135m", embedding_config="minilm")
    try:
        await hybrid.start()
        await answer(hybrid, question)
    except SageInferError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    finally:
        await hybrid.close()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(" ".join(sys.argv[1:]) or QUESTION)))
