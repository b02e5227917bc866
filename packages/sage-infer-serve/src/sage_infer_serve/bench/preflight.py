"""Checks before a measurement: server reachable, key accepted, model known, requests answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice

from sage_infer.compat import timeout
from sage_infer.errors import BackendUnavailable, ConfigError, InvalidRequest, ModelNotFound, SageInferError

from sage_infer_serve.bench.load import Sender
from sage_infer_serve.bench.progress import Progress
from sage_infer_serve.bench.replies import BadAnswer, error_message, model_ids
from sage_infer_serve.bench.workload import Request
from sage_infer_serve.http.client import Answer, Client, Disconnected, Server

__all__ = ["choose_model", "warm_up"]

_TIMEOUT_S = 10.0


async def choose_model(client: Client, server: Server, wanted: str | None) -> tuple[str, list[str]]:
    """The model to measure (``wanted``, or the server's only model), and all models that the server lists.

    An unlisted model is accepted: servers have aliases, and some list nothing.

    Raises:
        BackendUnavailable: no server answers there.
        ConfigError: the server rejects the key.
        InvalidRequest: the model is ambiguous.
    """
    try:
        async with timeout(_TIMEOUT_S):
            answer = await client.get("/v1/models")
    except Disconnected as error:
        raise BackendUnavailable(
            f"no server answers at {server} ({error}); start one with `sage infer serve`, or change --url"
        ) from None
    except TimeoutError:
        raise BackendUnavailable(
            f"{server} accepts connections but did not answer within {_TIMEOUT_S:g} s"
        ) from None
    _refuse(answer, server)
    try:
        if answer.status != 200:
            raise BadAnswer(f"HTTP {answer.status}")
        known = model_ids(answer.body)
    except BadAnswer as error:
        if wanted is not None:
            return wanted, []
        raise InvalidRequest(f"{server} does not list its models ({error}); name one with --model") from None
    if wanted is not None:
        return wanted, known
    if len(known) == 1:
        return known[0], known
    raise InvalidRequest(f"{server} has {_listed(known)}; name the one to measure with --model")


async def warm_up(
    sender: Sender, requests: Iterator[Request], *, concurrency: int, progress: Progress, models: list[str]
) -> None:
    """Send ``progress.total`` unmeasured requests. ``models`` are the models listed by the server.

    Raises:
        SageInferError: none was answered; the message gives the cause and the fix.
    """
    work = islice(requests, progress.total)
    errors: list[str] = []

    async def keep_one_open() -> None:
        for request in work:
            error = (await sender.send(request)).error
            progress.count(failed=error is not None)
            if error is not None:
                errors.append(error)

    await asyncio.gather(*[keep_one_open() for _ in range(concurrency)])
    if errors and progress.failed == progress.ended:
        raise _as_error(errors[0], models)


def _refuse(answer: Answer, server: Server) -> None:
    if answer.status in (401, 403):
        raise ConfigError(
            f"{server} rejects the API key (HTTP {answer.status}: {error_message(answer.body)}); "
            "set one with --api-key or the environment variable OPENAI_API_KEY"
        )


def _as_error(message: str, models: list[str]) -> SageInferError:
    if message.startswith(("HTTP 401", "HTTP 403")):
        return ConfigError(f"{message}; set a key with --api-key or the environment variable OPENAI_API_KEY")
    if message.startswith("HTTP 404"):
        return ModelNotFound(
            f"{message}; check --model (the server has {_listed(models)}), --endpoint and --url"
        )
    if message.startswith("HTTP 4"):
        return InvalidRequest(f"the server rejects this workload: {message}")
    return BackendUnavailable(f"no warm-up request was answered: {message}")


def _listed(models: list[str]) -> str:
    return f"the models {', '.join(models)}" if models else "no models"
