"""An ``InferenceBackend`` for ``.qk`` files."""

import asyncio
import random
import time
from functools import partial

from sage_infer.contracts import BufferedTokenStream, as_prompts, request_ids
from sage_infer.errors import (
    ConfigError,
    EngineDead,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    UnsupportedFeature,
)
from sage_infer.schemas import Prompt, Timing, TokenDelta, Usage
from sage_infer.sdk import check_claims

from quokka_sage.instance import Instance
from quokka_sage.model import END, VOCABULARY, choose


class QuokkaBackend(Instance):
    name, features = "quokka", ("streaming", "chat", "tokenize", "seed")

    def __init__(self, model, *, max_queue=64):
        super().__init__(model)
        if type(max_queue) is not int or max_queue < 1:
            raise ConfigError(f"option max_queue of quokka must be a positive integer, got {max_queue!r}")
        self.max_queue = max_queue

    async def generate(self, prompts, params, *, request_id=None, options=None):
        self.check_running()
        asked = as_prompts(prompts)
        check_claims(self.features, backend=self.name, params=params, options=options, prompts=asked)
        if not asked:
            raise InvalidRequest("there are no prompts; give one or more")
        token_ids = [self._ids(prompt) for prompt in asked]
        for ids in token_ids:
            if len(ids) >= self.limit:
                raise InvalidRequest(
                    f"the prompt has {len(ids)} tokens, and the limit is {self.limit} with output"
                )
        name = self.new_id(request_id)
        if len(self.open) + len(asked) > self.max_queue:
            raise Overloaded(
                f"{len(self.open)} requests are open, of at most {self.max_queue}", retry_after=1.0
            )
        return [
            self._begin(*part, params) for part in zip(request_ids(name, len(asked)), token_ids, strict=True)
        ]

    def _begin(self, name, ids, params):
        stream = BufferedTokenStream(name, partial(self._end, name, "caller"))
        task = asyncio.create_task(self._run(name, stream, ids, params, time.monotonic()))
        self.open[name] = partial(self._end, name, stream=stream, task=task)
        return stream

    def _end(self, name, by, *, stream=None, task=None):
        if stream is None:  # the stream's own ``cancel``
            self.open[name](by)
            return
        task.cancel()
        self.forget(name)
        stream.fail(RequestCancelled(f"request {name} was cancelled by its {by}", by=by))

    async def _run(self, name, stream, ids, params, accepted):
        async with self.slots:
            self.running += 1
            try:
                queued = time.monotonic() - accepted
                await self._decode(name, stream, ids, params, accepted, queued)
            except Exception as error:
                self.forget(name)
                stream.fail(EngineDead(f"request {name} failed: {error}; report it to Quokka"))
            finally:
                self.running -= 1

    async def _decode(self, name, stream, ids, params, accepted, queued):
        self.prompt_tokens += len(ids)
        draw, context, held, reason = random.Random(params.seed), "".join(map(chr, ids)), "", None
        made, first = 0, 0.0
        left = min(params.max_tokens or self.limit, self.limit - len(ids))
        while reason is None:
            await asyncio.sleep(0)  # one step: everybody else has a turn
            token = choose(self.loaded.following(context), params, draw)
            made, context, last = made + 1, (context + chr(token))[-32:], time.monotonic() - accepted
            first = first or last
            self.output_tokens += 1
            may_stop = made >= params.min_tokens
            if may_stop and (token in params.stop_token_ids or (token == END and not params.ignore_eos)):
                reason = "stop"
            elif token != END or not params.skip_special_tokens:
                held += chr(token)
            found = [(held.find(stop) + len(stop), stop) for stop in params.stop if may_stop and stop in held]
            if found:
                reason, held = "stop", held[: min(found)[0] - len(min(found)[1])]
            elif made == left:
                reason = reason or "length"
            keep = 0 if reason or not may_stop else _beginning(held, params.stop)
            text, held = held[: len(held) - keep], held[len(held) - keep :]
            stream.push(TokenDelta(text, (token,), finish_reason=reason))
        gap = (last - first) / (made - 1) if made > 1 else None
        self.forget(name)
        timing = Timing(queue_s=queued, ttft_s=max(first, queued), total_s=last, inter_token_s=gap)
        stream.finish(reason, Usage(prompt_tokens=len(ids), completion_tokens=made), timing)

    def _ids(self, prompt):
        ids = [ord(letter) for letter in prompt.text] if prompt.text is not None else list(prompt.token_ids)
        if outside := [token for token in ids if not 0 <= token < VOCABULARY]:
            raise InvalidRequest(f"token {outside[0]} is outside the vocabulary of {VOCABULARY}")
        return ids

    async def prefill(self, prompts, *, request_id, params=None, options=None, hold_s=None):
        raise UnsupportedFeature("quokka has no prefill_decode; use generate")

    async def decode(self, state, *, request_id, options=None):
        raise UnsupportedFeature("quokka has no prefill_decode; use generate")

    async def render_chat(self, messages, *, tools=None, template_variables=None, add_generation_prompt=True):
        self.check_running()
        for given, feature in ((tools, "tools"), (template_variables, "template_variables")):
            if given:
                raise UnsupportedFeature(f"quokka does not support {feature} of a chat; leave them out")
        if not messages or any("role" not in message for message in messages):
            raise InvalidRequest("a chat has one message or more, each with a role")
        lines = [f"{message['role']}: {_text(message)}\n" for message in messages]
        return Prompt(text="".join(lines) + "assistant: " * add_generation_prompt)

    async def tokenize(self, prompt):
        self.check_running()
        return self._ids(as_prompts(prompt)[0])

    async def detokenize(self, token_ids):
        self.check_running()
        return "".join(map(chr, self._ids(Prompt(token_ids=token_ids)))) if token_ids else ""

    def get_kv_schema(self):
        raise UnsupportedFeature("quokka counts characters and keeps no KV")

    def load_quant_profile(self, profile):
        raise UnsupportedFeature("quokka does not support quant_profile: counts have no precision to choose")


def _text(message):
    content = message.get("content")
    if content is None or content == []:
        raise InvalidRequest(f"a message of {message['role']} has no content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if other := [part.get("type") for part in parts if part.get("type") != "text"]:
        raise UnsupportedFeature(f"quokka reads text; it does not support {other[0]} (feature multimodal)")
    return "".join(part["text"] for part in parts)


def _beginning(text, stops):
    """How many characters at the end of the text may begin a stop string."""
    sizes = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(sizes, default=0)
