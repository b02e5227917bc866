"""The backend ``quokka-embedding``: hashed letter triples; those that are frequent in the ``.qk`` file weigh less."""

import math
import zlib

from sage_infer.sdk import BaseEmbeddingBackend

from quokka_sage.model import LIMIT, load


class QuokkaEmbedding(BaseEmbeddingBackend):
    name, dim, max_sequence_length = "quokka-embedding", 128, LIMIT

    def load(self, report):
        self.counts = load(self.model.model_path)

    def encode(self, text):
        return [ord(letter) for letter in text] if isinstance(text, str) else text

    def vectors(self, batch):
        return [self.vector("".join(map(chr, tokens))) for tokens in batch]

    def vector(self, text):
        numbers = [0.0] * self.dim
        padded = f" {text} ".lower()
        for at in range(len(padded) - 2):
            triple = padded[at : at + 3]
            place = zlib.crc32(triple.encode("utf-8", "surrogatepass")) % self.dim
            numbers[place] += 1 / (1 + self.counts.seen(triple))
        length = math.hypot(*numbers)
        return [number / length for number in numbers]
