"""The backend ``quokka``: chats with a model of characters."""

import random

from sage_infer.errors import InvalidRequest
from sage_infer.schemas import Prompt
from sage_infer.sdk import BaseInferenceBackend, Completion, choose_token

from quokka_sage.model import END, LIMIT, VOCABULARY, load


class QuokkaBackend(BaseInferenceBackend):
    name, features = "quokka", ("streaming", "chat", "tokenize", "seed", "min_p")
    max_sequence_length, vocabulary = LIMIT, VOCABULARY

    def load(self, report):
        self.counts = load(self.model.model_path)

    def encode(self, prompt):
        return [ord(letter) for letter in prompt.text]

    def decode_tokens(self, token_ids):
        return "".join(map(chr, token_ids))

    def render(self, messages, *, add_generation_prompt):
        if silent := [message["role"] for message in messages if not message.get("content")]:
            raise InvalidRequest(f"a message of {silent[0]} has no content")
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return Prompt(text="".join(lines) + "assistant: " * add_generation_prompt)

    async def complete(self, token_ids, params, *, max_tokens):
        def decode(token):
            return "" if token == END and params.skip_special_tokens else chr(token)

        draw, context = random.Random(params.seed), self.decode_tokens(token_ids)
        completion = Completion(params, max_tokens=max_tokens, decode=decode, eos_token_ids=[END])
        while completion.finish_reason is None:
            token = choose_token(self.counts.following(context), params, draw)
            context = (context + chr(token))[-LIMIT:]
            yield completion.push(token)
