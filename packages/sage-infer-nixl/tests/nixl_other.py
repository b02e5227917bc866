"""A process with an endpoint of its own: orders on standard input, answers on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema, KVChunk, KVLocation
from sage_infer.sdk import checksum

__all__ = ["HAS_NIXL", "NO_NIXL", "OtherProcess", "chunk_of"]

HAS_NIXL = any(find_spec(name) is not None for name in ("nixl_cu12", "nixl_cu13", "nixl_rocm"))
NO_NIXL = "no build of NIXL is installed; `hatch run nixl:test` has one"


def chunk_of(data: bytes) -> KVChunk:
    schema = KVCacheSchema(
        dtype="int8", page_size=len(data) or 1, num_layers=1, num_heads=1, head_dim=1, scale_dtype="fp32"
    )
    return KVChunk(
        chunk_id="0" * 32, request_id="test", layer_start=0, layer_end=1, token_start=0, token_end=1,
        kv_schema=schema, nbytes=len(data), checksum=checksum(data),
    )  # fmt: skip


class OtherProcess:
    """The process, seen from outside."""

    def __init__(self, capacity_bytes: int = 64 << 20) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(capacity_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.agent_pid = int(self._answer())

    def publish(self, data: bytes) -> KVLocation:
        return KVLocation(tier="dram", uri=self._ask("publish", data.hex()))

    def reserve(self, nbytes: int) -> KVLocation:
        return KVLocation(tier="dram", uri=self._ask("reserve", nbytes))

    def contents(self, location: KVLocation) -> bytes | None:
        found = self._ask("contents", location.uri)
        return None if found is None else bytes.fromhex(found)

    def withdraw(self, location: KVLocation) -> None:
        self._ask("withdraw", location.uri)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _ask(self, what: str, about: Any) -> Any:
        self.process.stdin.write(json.dumps([what, about]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        assert line, "the other process has ended"
        return json.loads(line)


def main() -> None:
    from sage_infer_nixl import NIXLEndpoint

    endpoint = NIXLEndpoint(capacity_bytes=int(sys.argv[1]))
    print(endpoint.agent_pid, flush=True)
    for line in sys.stdin:
        what, about = json.loads(line)
        answer: Any = None
        if what == "publish":
            data = bytes.fromhex(about)
            answer = endpoint.publish([chunk_of(data)], [memoryview(data)])[0].uri
        elif what == "reserve":
            answer = endpoint.reserve([chunk_of(bytes(about))])[0].uri
        elif what == "contents":
            try:
                answer = bytes(endpoint.open(KVLocation(tier="dram", uri=about))).hex()
            except InvalidRequest:
                answer = None
        else:
            endpoint.withdraw([KVLocation(tier="dram", uri=about)])
        print(json.dumps(answer), flush=True)
    endpoint.close()


if __name__ == "__main__":
    main()
