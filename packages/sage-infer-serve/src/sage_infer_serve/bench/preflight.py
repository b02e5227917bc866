"""Before anything is measured: is there a server, does it take the key, does it know the model, does it answer?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice

from sage_infer.errors import BackendUnavailable, ConfigError, InvalidRequest, ModelNotFound, SageInferError

from sage_infer_serve.bench.client import Answer, Client, Disconnected, Server
from sage_infer_serve.bench.load import Sender
from sage_infer_serve.bench.progress import Progress
from sage_infer_serve.bench.replies import BadAnswer, error_message, model_ids
from sage_infer_serve.bench.workload import Request

__all__ = ["choose_model", "warm_up"]

_TIMEOUT_S = 10.0


async def choose_model(client: Client, server: Server, wanted: str | None) -> tuple[str, list[str]]:
    """The model to measure (``wanted``, or the only one that the server has), and all that the server lists.

    One that is not listed is asked for all the same: servers have aliases, and some list nothing.

    Raises:
        BackendUnavailable: nothing answers there.
        ConfigError: the server wants another key.
        InvalidRequest: which model is meant is not clear.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            answer = await client.get("/v1/models")
    except Disconnected as error:
        raise BackendUnavailable(
            f"no server answers at {server} ({error}); start one with `sage infer serve`, or name another with --url"
        ) from None
    except TimeoutError:
        raise BackendUnavailable(
            f"{server} takes connections but did not answer in {_TIMEOUT_S:g} s"
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
    """Send ``progress.total`` requests, which are not measured. ``models`` is what the server lists.

    Raises:
        SageInferError: none was answered; the message says why, and what to do.
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
            f"{server} refuses the API key (HTTP {answer.status}: {error_message(answer.body)}); "
            "give one as --api-key or in the environment variable OPENAI_API_KEY"
        )


def _as_error(message: str, models: list[str]) -> SageInferError:
    if message.startswith(("HTTP 401", "HTTP 403")):
        return ConfigError(
            f"{message}; give a key as --api-key or in the environment variable OPENAI_API_KEY"
        )
    if message.startswith("HTTP 404"):
        return ModelNotFound(
            f"{message}; check --model (the server has {_listed(models)}), --endpoint and --url"
        )
    if message.startswith("HTTP 4"):
        return InvalidRequest(f"the server refuses this workload: {message}")
    return BackendUnavailable(f"no warm-up request was answered: {message}")


def _listed(models: list[str]) -> str:
    return f"the models {', '.join(models)}" if models else "no models"
