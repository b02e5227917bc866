"""KV moved from one instance to another: export, import, corruption, a second process."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from sage_infer.contracts import KVStateChecking, KVTransfer
from sage_infer.errors import CapabilityMismatch, InvalidRequest, KVCorrupt
from sage_infer.schemas import DecodeState

from sage_infer_testing.elsewhere import decode_elsewhere
from sage_infer_testing.features import when_claimed
from sage_infer_testing.kits.generation.disaggregation import DisaggregationTests, through_json
from sage_infer_testing.reading import greedy
from sage_infer_testing.shape import shape_problems

__all__ = ["TransferTests"]


class TransferTests(DisaggregationTests, kit=True):
    """Tests of backends that claim ``kv_export`` and ``kv_import``."""

    async def exported(self, backend: Any) -> tuple[DecodeState, list[memoryview]]:
        """Return state and buffers of the first prompt after the instance has freed the request."""
        state = await self.prefilled(backend, greedy(self.max_output))
        moved, buffers = await backend.export_kv(state)
        copies = [memoryview(bytes(buffer)) for buffer in buffers]
        await backend.abort(state.request_id)
        return moved, copies

    @when_claimed("kv_export")
    async def test_export_gives_whole_checksummed_chunks(self, backend: Any) -> None:
        """There is one buffer per chunk of the exported state, with the chunk's size, and every chunk has a checksum.

        How to fix: set ``KVChunk.nbytes`` and ``KVChunk.checksum`` from the exported bytes.
        """
        problems = shape_problems(backend, KVTransfer)
        assert not problems, f"not a KVTransfer: {'; '.join(problems)}"
        state, buffers = await self.exported(backend)
        assert buffers, "nothing was exported"
        sizes = [buffer.nbytes for buffer in buffers]
        assert [chunk.nbytes for chunk in state.chunks] == sizes, (
            f"buffers of {sizes} bytes for {state.chunks}"
        )
        assert all(chunk.checksum for chunk in state.chunks), "a chunk has no checksum"

    @when_claimed("kv_export")
    async def test_export_of_what_is_not_held_is_refused(self, backend: Any) -> None:
        """Exporting a state whose KV was freed is an ``InvalidRequest``.

        How to fix: look up the request before reading blocks, which may belong to another request by now.
        """
        state = await self.prefilled(backend, greedy(4))
        await backend.abort(state.request_id)
        with pytest.raises(InvalidRequest):
            await backend.export_kv(state)

    @when_claimed("kv_export", "kv_import")
    async def test_imported_kv_decodes_as_if_computed_here(self, backend: Any) -> None:
        """Exported and re-imported KV decodes to the output of ``generate``; all blocks are freed.

        How to fix: compare the bytes of a block before export and after import; then check positions and the block
        table.
        """
        expected = await self.greedy_output(backend)
        before = await self.idle(backend)
        state, buffers = await self.exported(backend)
        await self.idle(backend, free_blocks=before.kv_blocks_free)
        output = await self.decoded(backend, await backend.import_kv(through_json(state), buffers))
        assert output.token_ids == expected.token_ids, f"{output.text!r}, generate: {expected.text!r}"
        await self.idle(backend, free_blocks=before.kv_blocks_free)

    @when_claimed("kv_export", "kv_import")
    async def test_damaged_kv_is_refused(self, backend: Any) -> None:
        """A flipped bit or a short buffer raises ``KVCorrupt``, and no blocks stay allocated.

        How to fix: verify size and checksum of every buffer before the first block is written.
        """
        before = await self.idle(backend)
        state, buffers = await self.exported(backend)
        flipped = bytearray(buffers[-1])
        flipped[len(flipped) // 2] ^= 0x10
        for damaged in (memoryview(flipped), buffers[-1][:-1]):
            with pytest.raises(KVCorrupt):
                await backend.import_kv(state, [*buffers[:-1], damaged])
        await self.idle(backend, free_blocks=before.kv_blocks_free)

    @when_claimed("kv_export", "kv_import")
    async def test_kv_of_another_kind_is_refused(self, backend: Any) -> None:
        """KV of another model or another schema is a ``CapabilityMismatch``, of ``check_state`` too if there is one.

        How to fix: first compare ``model_id`` and ``kv_schema``, and name the difference.
        """
        state, buffers = await self.exported(backend)
        assert state.kv_schema is not None, "exported KV needs a kv_schema"
        schema = attrs.evolve(state.kv_schema, num_layers=state.kv_schema.num_layers + 1)
        for other in (attrs.evolve(state, model_id="another-model"), attrs.evolve(state, kv_schema=schema)):
            with pytest.raises(CapabilityMismatch):
                await backend.import_kv(other, buffers)
            if isinstance(backend, KVStateChecking):
                with pytest.raises(CapabilityMismatch):
                    await backend.check_state(other)
        if isinstance(backend, KVStateChecking):
            problems = shape_problems(backend, KVStateChecking)
            assert not problems, f"not a KVStateChecking: {'; '.join(problems)}"
            await backend.check_state(state)

    @when_claimed("kv_export", "kv_import")
    async def test_another_process_goes_on(self, backend: Any) -> None:
        """An instance in another process imports the exported KV and decodes it to the same tokens.

        How to fix: put everything that ``decode`` needs into the state and the buffers. The child process creates its
        instance with ``make_backend`` of this class.
        """
        expected = await self.greedy_output(backend)
        state, buffers = await self.exported(backend)
        token_ids = await decode_elsewhere(type(self), state, buffers, timeout_s=self.timeout_s)
        assert tuple(token_ids) == expected.token_ids, (
            f"the child returned {token_ids}, generate {expected.token_ids}"
        )
