"""What is asked: lengths, texts and times of arrival, drawn from a seed, so that two runs ask the same.

Lengths are log-normal and stand for ShareGPT, whose conversations most papers on serving measure with. Their means
are those of the vLLM paper (Kwon et al., SOSP 2023, arXiv:2309.06180, figure 11): 161 tokens of prompt and 338 of
output. Their spread is that of Sarathi-Serve (Agrawal et al., OSDI 2024, arXiv:2403.02310, table 2,
openchat_sharegpt4): a log-normal with the printed medians and 90th percentiles (1,730 and 5,696 tokens of prompt, 415
and 834 of output) has these sigmas. What vLLM's own benchmark leaves out is left out here: fewer than 4 tokens,
prompts over 1,024, more than 2,048 together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Literal

import msgspec
from attrs import frozen

__all__ = ["Endpoint", "Lengths", "Request", "Workload", "arrivals", "path_of"]

Endpoint = Literal["chat", "completions", "embeddings"]

MEAN_INPUT, MEAN_OUTPUT = 161.31, 337.99
SIGMA_INPUT = math.log(5696 / 1730) / 1.2816  # a normal's 90th percentile is 1.2816 sigmas above its median
SIGMA_OUTPUT = math.log(834 / 415) / 1.2816
LEAST, MOST_INPUT, MOST_TOTAL = 4, 1024, 2048
EMBEDDED_TOKENS = 100  # of a text, about a paragraph: within the limit of every encoder

# Common words, each one token of nearly every vocabulary when a blank stands before it.
_WORDS = """
time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room
mother area money story fact month lot right study book eye job word business issue side kind head house
service friend father power hour game line end member law car city community name president team minute idea
body information back parent face others level office door health person art war history party result change
morning reason research girl guy moment air teacher force education foot boy age policy music market sense
nation plan college interest death experience effect use class control care field development role effort
rate heart drug show leader light voice wife police mind price report decision son view relationship town
road arm difference value building action season society tax director position player record paper space
ground form event official matter center couple site project activity star table need court oil situation
cost industry figure street image phone data picture practice piece land product doctor wall patient worker
news test movie north love support technology
""".split()  # noqa: SIM905 - a list would be a line a word

_PATHS: dict[Endpoint, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}


def path_of(endpoint: Endpoint) -> str:
    return _PATHS[endpoint]


@frozen(kw_only=True)
class Lengths:
    """How long requests are, in tokens.

    Attributes:
        input: of every prompt or text; None draws them like ShareGPT's.
        output: of every output; None draws them like ShareGPT's.
        scale: what drawn lengths are multiplied by.
    """

    input: int | None = None
    output: int | None = None
    scale: float = 1.0

    def draw(self, rng: Random) -> tuple[int, int]:
        """Tokens of one prompt, and the most of its output."""
        while True:
            # Both are drawn even if one is fixed: the other's lengths then stay what they were.
            drawn = _lognormal(rng, MEAN_INPUT, SIGMA_INPUT), _lognormal(rng, MEAN_OUTPUT, SIGMA_OUTPUT)
            if min(drawn) >= LEAST and drawn[0] <= MOST_INPUT and sum(drawn) <= MOST_TOTAL:
                break
        given = self.input, self.output
        tokens, output = (
            fixed if fixed is not None else max(1, round(length * self.scale))
            for fixed, length in zip(given, drawn, strict=True)
        )
        return tokens, output


@frozen(kw_only=True)
class Request:
    """One request, ready to be sent. ``texts`` is how many are embedded by it, 0 for a generation."""

    body: bytes
    texts: int


@frozen(kw_only=True)
class Workload:
    """What is asked of one model.

    Attributes:
        endpoint: chat, completions or embeddings.
        stream: whether generated text is asked for as it comes.
        batch: texts in one request for embeddings.
        ignore_eos: ask for the whole output length, past the model's end of sequence (vLLM's and our extension).
    """

    endpoint: Endpoint
    model: str
    lengths: Lengths
    stream: bool = True
    batch: int = 1
    ignore_eos: bool = False

    def requests(self, seed: int) -> Iterator[Request]:
        """Requests without end. Prompts are random words: no two begin alike, so that no prefix cache answers."""
        rng = Random(seed)
        while True:
            yield self._embedding(rng) if self.endpoint == "embeddings" else self._generation(rng)

    def _embedding(self, rng: Random) -> Request:
        texts = [_text(rng, self.lengths.input or EMBEDDED_TOKENS) for _ in range(self.batch)]
        return Request(body=msgspec.json.encode({"model": self.model, "input": texts}), texts=self.batch)

    def _generation(self, rng: Random) -> Request:
        tokens, output = self.lengths.draw(rng)
        text = _text(rng, tokens)
        fields: dict[str, object] = {"model": self.model, "max_tokens": output, "temperature": 0}
        if self.endpoint == "chat":
            fields["messages"] = [{"role": "user", "content": text}]
        else:
            fields["prompt"] = text
        if self.stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.ignore_eos:
            fields["ignore_eos"] = True
        return Request(body=msgspec.json.encode(fields), texts=0)


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """When requests of a Poisson process arrive, in seconds from its start, without end."""
    rng, at = Random(seed), 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def _lognormal(rng: Random, mean: float, sigma: float) -> float:
    return rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)


def _text(rng: Random, tokens: int) -> str:
    return " ".join(rng.choices(_WORDS, k=tokens))
