"""A whole backend in the smallest form: characters are tokens, and the answer is the prompt reversed."""

import math
import struct
import uuid

from sage_infer.contracts import BufferedTokenStream, EngineStats, Health, as_prompts, request_ids
from sage_infer.errors import CapabilityMismatch, InvalidRequest, UnsupportedFeature
from sage_infer.schemas import (
    CapabilityDescriptor,
    EmbeddingResult,
    KVCacheSchema,
    Prompt,
    RerankHit,
    RerankResult,
    Timing,
    TokenDelta,
    TokenLogprob,
    Usage,
)

LIMIT = 200
TIMING = Timing(queue_s=0, ttft_s=0, total_s=0.001)


class Base:
    def __init__(self, model, *, delay=0):
        self.model = model

    async def start(self):
        pass

    async def close(self):
        pass

    async def health(self):
        return Health(status="ok")

    def stats(self):
        return EngineStats(running=0, waiting=0)


class ToyBackend(Base):
    profile = None
    report = staticmethod(lambda stage, share: None)

    def load_quant_profile(self, profile):
        if profile.weight_bits < 8:
            raise CapabilityMismatch(f"weight_bits must be 8 or more, got {profile.weight_bits}")
        self.profile = profile

    def on_progress(self, report):
        self.report = report

    async def start(self):
        self.report("reading", None)
        self.report("packing", 0.25)

    def get_kv_schema(self):
        return KVCacheSchema.from_preset("fp16", num_layers=1, num_heads=1, head_dim=1)

    def get_capability(self):
        return CapabilityDescriptor(
            backend_name="toy",
            instance_type="general",
            hardware_backend="cpu",
            max_batch_size=1,
            max_sequence_length=LIMIT,
            supported_precisions=["fp32"],
            features=["chat", "logprobs"],
        )

    async def render_chat(self, messages, *, tools=None, template_variables=None, add_generation_prompt=True):
        if not messages:
            raise InvalidRequest("no messages")
        return Prompt(text="|".join(m["content"] for m in messages))

    async def generate(self, prompts, params, *, request_id=None, options=None):
        if params.guided is not None:
            raise UnsupportedFeature("the toy has no guided decoding; leave it out")
        prompts = as_prompts(prompts)
        for prompt in prompts:
            if len(prompt.text) > LIMIT:
                raise InvalidRequest(f"the prompt has {len(prompt.text)} tokens, and the limit is {LIMIT}")
        streams = []
        for name, prompt in zip(
            request_ids(request_id or uuid.uuid4().hex, len(prompts)), prompts, strict=True
        ):
            stream = BufferedTokenStream(name, lambda: None)
            1 / (prompt.text != "crash")
            head = f"[{self.profile.profile_id}] " if self.profile else ""
            text = head + prompt.text[::-1][: params.max_tokens]
            for index in range(params.n):
                for at, letter in enumerate(text):
                    best = ((ord(letter), letter, 0.0),)
                    logprobs = (
                        (TokenLogprob(ord(letter), letter, 0.0, best),)
                        if params.logprobs is not None
                        else None
                    )
                    last = "stop" if at == len(text) - 1 else None
                    stream.push(TokenDelta(letter, (ord(letter),), index, logprobs, last))
            stream.finish(
                "stop", Usage(prompt_tokens=len(prompt.text), completion_tokens=len(text) * params.n), TIMING
            )
            streams.append(stream)
        return streams


class ToyEmbedding(Base):
    async def embed_batch(self, texts, *, truncate="error"):
        vectors = [(math.cos(len(text)), math.sin(len(text))) for text in texts]
        data = b"".join(struct.pack("2f", *vector) for vector in vectors)
        return EmbeddingResult(
            model_id="toy", dim=2, data=memoryview(data), usage=Usage(prompt_tokens=len(texts))
        )

    async def rerank(self, query, documents, *, top_n=None):
        """Shorter documents are better."""
        hits = [RerankHit(index=i, score=1 / len(text)) for i, text in enumerate(documents)]
        hits.sort(key=lambda hit: -hit.score)
        return RerankResult(model_id="toy", hits=hits[:top_n], usage=Usage(prompt_tokens=len(documents)))


def prepare(model, progress):
    progress("folding", 0.5)
    progress("folding", 1.0)


def greet(name: str = "you"):
    print(f"hello {name}")


def interrupted():
    raise KeyboardInterrupt


def broken():
    return 1 / 0
