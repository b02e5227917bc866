"""The workload: lengths, texts and arrival times, drawn from a seed, so that two runs send the same requests.

Lengths are log-normal and approximate ShareGPT, which most papers on serving use. Their means
are those of the vLLM paper (Kwon et al., SOSP 2023, arXiv:2309.06180, figure 11): 161 tokens of prompt and 338 of
output. Their spread is that of Sarathi-Serve (Agrawal et al., OSDI 2024, arXiv:2403.02310, table 2,
openchat_sharegpt4): a log-normal with the published medians and 90th percentiles (1,730 and 5,696 tokens of prompt, 415
and 834 of output) has these sigmas. Like vLLM's own benchmark, this excludes lengths below 4 tokens, prompts over 1,024
and totals over 2,048.
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
    """Lengths of requests in tokens.

    Attributes:
        input: length of every prompt or text; None: random, like ShareGPT.
        output: length of every output; None: random, like ShareGPT.
        scale: factor for random lengths.
    """

    input: int | None = None
    output: int | None = None
    scale: float = 1.0

    def draw(self, rng: Random) -> tuple[int, int]:
        """Tokens of one prompt, and the maximum of its output."""
        while True:
            # Both are drawn even if one is fixed, so that the other's lengths stay the same.
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
    """One request, ready to send. ``texts`` is the number of embedded texts, 0 for generation."""

    body: bytes
    texts: int


@frozen(kw_only=True)
class Workload:
    """Requests to one model.

    Attributes:
        endpoint: chat, completions or embeddings.
        stream: whether to request streamed text.
        batch: texts per embedding request.
        ignore_eos: request the full output length, past the model's end of sequence (an extension of vLLM and ours).
    """

    endpoint: Endpoint
    model: str
    lengths: Lengths
    stream: bool = True
    batch: int = 1
    ignore_eos: bool = False

    def requests(self, seed: int) -> Iterator[Request]:
        """An endless sequence of requests. Prompts are random words without common prefixes to cache."""
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
    """Endless arrival times of a Poisson process, in seconds from its start."""
    rng, at = Random(seed), 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def _lognormal(rng: Random, mean: float, sigma: float) -> float:
    return rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)


def _text(rng: Random, tokens: int) -> str:
    return " ".join(rng.choices(_WORDS, k=tokens))
