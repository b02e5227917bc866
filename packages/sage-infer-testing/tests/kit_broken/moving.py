"""Endpoints and codecs with one mistake each."""

from __future__ import annotations

import itertools
from typing import Any

from attrs import evolve
from kit_reference.codec import PRIVATE, LayerwiseReferenceCodec, ReferenceCodec
from kit_reference.endpoint import CAPACITY, ReferenceEndpoint
from kit_reference.transport import ReferenceTransport
from sage_infer.errors import InvalidRequest
from sage_infer_testing import KVEndpointContract, KVFormatCodecContract

from kit_broken.suites import suite


def endpoint(*tests: str) -> Any:
    made = {"capacity_bytes": CAPACITY, "make_transport": lambda self: ReferenceTransport()}
    return suite(KVEndpointContract, "make_endpoint", *tests, **made)


def codec(*tests: str) -> Any:
    return suite(KVFormatCodecContract, "make_codec", *tests, kv_schema=PRIVATE)


@endpoint("test_a_chunk_can_be_published_twice")
class NamesByContent(ReferenceEndpoint):
    def name(self, chunk: Any) -> str:
        return str(chunk.chunk_id)


@endpoint("test_published_chunks_can_be_opened", "test_a_transport_joins_two_endpoints")
class PublishesBackwards(ReferenceEndpoint):
    def publish(self, chunks: Any, buffers: Any) -> Any:
        return super().publish(chunks[::-1], buffers[::-1])


@endpoint("test_wrong_buffers_are_refused")
class TakesAnyBuffers(ReferenceEndpoint):
    def check(self, chunks: Any, buffers: Any) -> None:
        """Does not look."""

    def publish(self, chunks: Any, buffers: Any) -> Any:
        paired = list(zip(chunks, buffers, strict=False))
        return super().publish([c for c, _ in paired], [b for _, b in paired])


@endpoint("test_withdrawn_locations_are_gone", "test_reserved_room_can_be_opened")
class KeepsWithdrawnLocations(ReferenceEndpoint):
    def withdraw(self, locations: Any) -> None:
        """Keeps them."""


@endpoint("test_unknown_locations_are_refused")
class OpensAnyFile(ReferenceEndpoint):
    def open(self, location: Any) -> Any:
        try:
            return memoryview(self.path(location).read_bytes())
        except OSError as error:
            raise InvalidRequest(str(error)) from None


@endpoint("test_too_much_is_overloaded")
class KeepsTheRoomOfRefusedChunks(ReferenceEndpoint):
    def locations(self, chunks: Any) -> Any:
        return tuple(
            itertools.chain.from_iterable(
                super(KeepsTheRoomOfRefusedChunks, self).locations([c]) for c in chunks
            )
        )


@endpoint("test_close_withdraws_everything")
class StaysOpen(ReferenceEndpoint):
    def close(self) -> None:
        """Holds on."""


@codec("test_plain_pages_survive_the_private_form", "test_private_pages_unpack_to_what_they_hold")
class PacksTheOtherWay(ReferenceCodec):
    def pack(self, page: Any, schema: Any, out: Any) -> None:
        self.unpack(page, schema, out)


@codec("test_every_element_is_carried")
class LosesTheLastElement(ReferenceCodec):
    def moves(self, schema: Any) -> Any:
        return super().moves(schema)[:-1]


@codec("test_plain_pages_survive_the_private_form")
class RoundsMoreThanItStates(ReferenceCodec):
    max_error = 0.001

    def pack(self, page: Any, schema: Any, out: Any) -> None:
        super().pack(page, schema, out)
        for at in range(0, len(out), 2):
            out[at] &= 0x00  # of an fp16, the lower 8 of its 10 digits


@codec("test_states_its_error")
class StatesNoError(ReferenceCodec):
    max_error = 1.0


@codec("test_matches_its_own_format")
class MatchesEverything(ReferenceCodec):
    def matches(self, schema: Any) -> bool:
        return True


@codec("test_the_plain_form_is_of_the_same_model")
class KeepsItsKeyOrder(ReferenceCodec):
    def plain(self, schema: Any) -> Any:
        return evolve(schema, format_id="")


@codec("test_wrong_sizes_are_refused")
class ChecksNoSizes(ReferenceCodec):
    def check(self, page: Any, schema: Any, out: Any) -> None:
        """Does not look."""

    def moves(self, schema: Any) -> Any:
        return super().moves(schema)[:1]


@codec("test_layers_and_tokens_convert_independently")
class UnpacksToTheBegin(LayerwiseReferenceCodec):
    def unpack_tokens(self, page: Any, schema: Any, tokens: Any, out: Any, out_schema: Any, at: int) -> None:
        super().unpack_tokens(page, schema, tokens, out, out_schema, 0)


@codec("test_layers_and_tokens_convert_independently")
class CountsTheLayersOfTheModel(LayerwiseReferenceCodec):
    def check(self, page: Any, schema: Any, out: Any) -> None:
        super().check(page, evolve(schema, num_layers=PRIVATE.num_layers), out)


@codec("test_pages_are_only_read")
class WipesThePage(ReferenceCodec):
    def unpack(self, page: Any, schema: Any, out: Any) -> None:
        super().unpack(page, schema, out)
        if not page.readonly:
            page[:] = bytes(len(page))
