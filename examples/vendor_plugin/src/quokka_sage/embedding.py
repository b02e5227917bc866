"""An ``EmbeddingBackend``: hashed letter triples, those that are frequent in the ``.qk`` file weighing less."""

import array
import asyncio
import math
import zlib

from sage_infer.contracts import as_texts, check_texts
from sage_infer.errors import InvalidRequest, RequestCancelled, UnsupportedFeature
from sage_infer.schemas import EmbeddingResult, Usage
from sage_infer.sdk import check_claims

from quokka_sage.instance import Instance


class QuokkaEmbedding(Instance):
    name, instance_type, features = "quokka-embedding", "embedding", ("embed",)

    def get_embedding_dim(self):
        return 128

    def get_max_length(self):
        return self.limit

    async def embed(self, texts, *, truncate="error", request_id=None, options=None):
        return await self.embed_batch(
            as_texts(texts), truncate=truncate, request_id=request_id, options=options
        )

    async def embed_batch(self, texts, batch_size=32, *, truncate="error", request_id=None, options=None):
        self.check_running()
        check_claims(self.features, backend=self.name, options=options)
        check_texts(texts, truncate)
        letters = [text if isinstance(text, str) else "".join(map(chr, text)) for text in texts]
        for index, text in enumerate(letters):
            if len(text) > self.limit and truncate == "error":
                raise InvalidRequest(
                    f"text {index} has {len(text)} characters, and the limit is {self.limit}"
                )
        name, numbers, ended = self.new_id(request_id), array.array("f"), []
        self.open[name] = ended.append
        try:
            for text in letters:
                await asyncio.sleep(0)  # everybody else's turn, and the moment in which an abort arrives
                if ended:
                    raise RequestCancelled(f"call {name} was cancelled by its {ended[0]}", by=ended[0])
                numbers.extend(self._vector(text[: self.limit]))
        finally:
            self.forget(name)
        usage = Usage(prompt_tokens=sum(min(len(text), self.limit) for text in letters))
        return EmbeddingResult(model_id=self.model.model_id, dim=128, data=numbers, usage=usage)

    async def rerank(self, query, documents, *, top_n=None, request_id=None, options=None):
        raise UnsupportedFeature("quokka-embedding does not rerank; use a reranker")

    def _vector(self, text):
        numbers = [0.0] * 128
        padded = f" {text} ".lower()
        for at in range(len(padded) - 2):
            triple = padded[at : at + 3]
            rarity = 1 / (1 + sum(self.loaded.counts.get(triple, {"": 0}).values()))
            numbers[zlib.crc32(triple.encode("utf-8", "surrogatepass")) % 128] += rarity
        length = math.hypot(*numbers)
        return [number / length for number in numbers]
