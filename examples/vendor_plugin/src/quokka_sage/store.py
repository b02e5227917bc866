"""The KV store ``quokka``: blocks in memory, compressed."""

import zlib

from sage_infer.sdk import BaseKVStore


class QuokkaStore(BaseKVStore):
    def write(self, key, block):
        return zlib.compress(block, level=1)

    def read(self, place, out):
        out[:] = zlib.decompress(place)
