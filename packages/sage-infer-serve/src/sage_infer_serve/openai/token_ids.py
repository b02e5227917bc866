"""``return_token_ids`` and ``continue_from``: with token ids, a client continues an answer on another server."""

from __future__ import annotations

import attrs
from sage_infer.contracts import HybridResuming, HybridTokenizing, TokenStream
from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas import DecodeState, Prompt, RequestOptions, SamplingParams

from sage_infer_serve.http.errors import wrong_request
from sage_infer_serve.openai.schema import CompletionRequest
from sage_infer_serve.service import Service

__all__ = ["continued", "tokenizing", "with_token_ids"]

_ELSEWHERE = "another server"  # the instance that began the output


def tokenizing(service: Service) -> HybridTokenizing:
    """The backend, for requests with ``return_token_ids``.

    Raises:
        UnsupportedFeature: it has no tokenizer.
    """
    if isinstance(service.backend, HybridTokenizing):
        return service.backend
    raise UnsupportedFeature(
        "return_token_ids is not supported, because the server's backend has no tokenizer; leave it out"
    )


async def with_token_ids(service: Service, prompt: Prompt, model: str) -> Prompt:
    """The prompt as token ids, so that the answer can say what they were.

    Raises:
        UnsupportedFeature: the backend has no tokenizer, or the prompt has images, whose tokens have no ids.
    """
    if prompt.media:
        raise UnsupportedFeature(
            "return_token_ids is not supported for images, audio and video; leave it out"
        )
    if prompt.token_ids is not None:
        return prompt
    ids = await tokenizing(service).tokenize(prompt, model=model)
    return attrs.evolve(prompt, text=None, token_ids=tuple(ids), add_special_tokens=True) if ids else prompt


async def continued(
    service: Service,
    request: CompletionRequest,
    prompts: list[str | list[int]],
    params: SamplingParams,
    model: str,
    request_id: str,
    options: RequestOptions | None,
) -> TokenStream:
    """Continue the output of ``continue_from`` exactly where it stopped.

    Raises:
        HTTPError: the prompt is not one list of token ids, or there are several completions.
        UnsupportedFeature: the model's backend cannot continue outputs.
    """
    given, backend = request.continue_from, service.backend
    assert given is not None
    if len(prompts) != 1 or isinstance(prompts[0], str):
        raise wrong_request("continue_from requires a prompt of token ids", "prompt")
    if params.n != 1 or request.echo:
        raise wrong_request("continue_from requires n = 1 without echo", "continue_from")
    if not isinstance(backend, HybridResuming) or not service.claims(model, "resume"):
        raise UnsupportedFeature(
            f"the backend of model {model!r} does not support continue_from; leave it out"
        )
    state = DecodeState(
        request_id=request_id,
        model_id=backend.get_model_status(model).model_id,
        instance_id=_ELSEWHERE,
        prompt_token_ids=tuple(prompts[0]),
        output_token_ids=tuple(given.token_ids),
        params=params,
        seed=params.seed or 0,
        delivered_chars=given.delivered_chars,
    )
    return await backend.resume([state], model=model, request_id=request_id, options=options)
