"""The transport ``quokka``: between files of one machine."""

import asyncio

from sage_infer.sdk import BaseTransport, copy_chunk, file_path


class QuokkaTransport(BaseTransport):
    schemes, attempts = {"file"}, 2

    async def move(self, step):
        source, target = file_path(step.source), file_path(step.target)
        await asyncio.to_thread(copy_chunk, step.chunk, source, target, piece_bytes=self.settings.chunk_bytes)
