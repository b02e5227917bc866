"""An encoder on OpenVINO without torch, from texts, pairs of texts or token ids to float32 rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
from sage_infer.contracts import ProgressReport
from sage_infer.errors import ContextLengthExceeded, InvalidRequest, UnsupportedFeature

from sage_infer_openvino.device import check_precision, compile_model, infer, latency_properties
from sage_infer_openvino.encoder.bert_graph import build_bert
from sage_infer_openvino.encoder.config import VectorHead, read_encoder_config
from sage_infer_openvino.models.safetensors_file import SafetensorsFolder
from sage_infer_openvino.models.tokenizer_file import encoded, read_tokenizer
from sage_infer_openvino.ov_runtime import ov

__all__ = ["Encoder", "EncoderInput"]

# Far more than any language has; a tokenizer takes even a book for one unknown word.
_CHARACTERS_PER_TOKEN = 256
_SHORT_CHARACTERS = 65_536  # not worth a limit
_TOKENIZED_TOGETHER = 64


@attrs.frozen
class EncoderInput:
    """Token ids of a text or a pair of texts."""

    ids: Sequence[int]
    types: Sequence[int] | None = None
    """Token types; None where all are 0."""

    def __len__(self) -> int:
        return len(self.ids)


class Encoder:
    """A compiled encoder. ``tokenize…`` may be called from any thread, :meth:`compute` from one at a time.

    ``folder`` is a Hugging Face or sentence-transformers folder; ``reranker`` makes it a cross-encoder;
    ``precision`` is the type of matrix products (``f32``, ``bf16``); ``max_sequence_length`` lowers the model's
    own limit. Each text is prefixed with ``prompt``, or the model's prompt named ``prompt_name``, or its
    default prompt. ``report`` is called with each stage of loading.

    Raises :class:`ModelFileError` and :class:`UnsupportedFeature`, each naming the file, :class:`CapabilityMismatch`
    for a precision that the device lacks, and :class:`InvalidRequest` for a prompt that the model does not have.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        reranker: bool = False,
        device: str = "CPU",
        precision: str = "f32",
        threads: int | None = None,
        max_sequence_length: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        report: ProgressReport | None = None,
    ) -> None:
        report = report or (lambda stage, share: None)
        report("reading", None)
        folder = Path(folder)
        self.config = read_encoder_config(folder, reranker=reranker)
        self.dimension = self.config.dimension
        limit = self.config.max_sequence_length
        self.max_sequence_length = limit if max_sequence_length is None else min(limit, max_sequence_length)
        self.prompt = self._find_prompt(prompt, prompt_name)
        self._tokenizer = read_tokenizer(folder / "tokenizer.json")
        self._cutting_tokenizer = read_tokenizer(folder / "tokenizer.json")
        self._cutting_tokenizer.enable_truncation(self.max_sequence_length)
        core = ov.Core()
        self.supported_precisions = check_precision(core, device, precision)
        properties = latency_properties(device, precision, threads)
        model = build_bert(self.config, SafetensorsFolder(folder))
        report("compiling", None)
        try:
            self._request = compile_model(core, model, device, properties).create_infer_request()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UnsupportedFeature(
                f"OpenVINO cannot compile {folder} for {device} with precision={precision}: {reason}"
            ) from error

    @property
    def _longest_text(self) -> int:
        """Characters of a text that are looked at."""
        return max(_SHORT_CHARACTERS, self.max_sequence_length * _CHARACTERS_PER_TOKEN)

    def tokenize(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool = False
    ) -> list[EncoderInput]:
        """Inputs for :meth:`compute`, in the order of ``inputs``.

        A text gets the prompt and the model's special tokens; token ids are used unchanged. Inputs over
        ``max_sequence_length`` are truncated if ``truncate``, otherwise rejected. Raises :class:`InvalidRequest`.
        """
        tokenizer = self._cutting_tokenizer if truncate else self._tokenizer
        longest = self._longest_text
        for index, item in enumerate(inputs):
            if isinstance(item, str) and len(item) > longest and not truncate:
                raise ContextLengthExceeded(
                    f"input {index} has {len(item)} characters, but the limit of this model is "
                    f"{self.max_sequence_length} tokens and {longest} characters; shorten it, or enable truncation"
                )
        # In parts: the tokenizer's objects take a hundred times the memory of the ids.
        texts = (
            encoding.ids
            for start in range(0, len(inputs), _TOKENIZED_TOGETHER)
            for encoding in encoded(
                tokenizer.encode_batch_fast,
                [
                    self._prepare(item[:longest])
                    for item in inputs[start : start + _TOKENIZED_TOGETHER]
                    if isinstance(item, str)
                ],
            )
        )
        result = []
        for index, item in enumerate(inputs):
            ids = (
                self._known(index, next(texts)) if isinstance(item, str) else self._checked(index, list(item))
            )
            if truncate:
                ids = ids[: self.max_sequence_length]
            elif len(ids) > self.max_sequence_length:
                raise ContextLengthExceeded(
                    f"input {index} has {len(ids)} tokens, but the limit of this model is {self.max_sequence_length}; "
                    "shorten it, or enable truncation"
                )
            result.append(EncoderInput(ids))
        return result

    def token_ids(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of a text, also over ``max_sequence_length``: as :meth:`tokenize` computes them, or the text's own.
        Raises :class:`InvalidRequest`.
        """
        if len(text) > self._longest_text:
            raise ContextLengthExceeded(
                f"the text has {len(text)} characters, but the limit of this model is {self._longest_text}; shorten it"
            )
        text = self._prepare(text) if add_special else self._cased(text)
        ids: list[int] = encoded(
            lambda given: self._tokenizer.encode(given, add_special_tokens=add_special), text
        ).ids
        return ids

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included. Raises :class:`InvalidRequest`."""
        checked = self._checked(0, list(token_ids)) if token_ids else []
        return self._tokenizer.decode(checked, skip_special_tokens=False)

    def tokenize_pairs(self, query: str, documents: Sequence[str]) -> list[EncoderInput]:
        """Inputs for :meth:`compute`: the query with each document, truncated at the end of the longer text."""
        longest = self._longest_text
        first = self._prepare(query[:longest])
        pairs = [(first, self._prepare(document[:longest])) for document in documents]
        encodings = (
            encoding
            for start in range(0, len(pairs), _TOKENIZED_TOGETHER)
            for encoding in encoded(
                self._cutting_tokenizer.encode_batch_fast, pairs[start : start + _TOKENIZED_TOGETHER]
            )
        )
        return [
            EncoderInput(self._known(index, encoding.ids), self._known_types(encoding.type_ids))
            for index, encoding in enumerate(encodings)
        ]

    def compute(self, batch: Sequence[EncoderInput]) -> npt.NDArray[np.float32]:
        """Run one inference. Returns rows ``[len(batch), dimension]`` in order, valid until the next call."""
        shape = len(batch), max(map(len, batch))
        feed = {
            "input_ids": np.full(shape, self.config.bert.padding_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
        }
        if self.config.bert.pair_types:
            feed["token_type_ids"] = np.zeros(shape, np.int64)
        for row, item in enumerate(batch):
            feed["input_ids"][row, : len(item)] = item.ids
            feed["attention_mask"][row, : len(item)] = 1
            if item.types is not None:
                feed["token_type_ids"][row, : len(item)] = item.types
        rows: npt.NDArray[np.float32] = infer(self._request, "rows", feed)
        return rows

    def _find_prompt(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None and name is not None:
            raise InvalidRequest("prompt and prompt_name are both set; remove one of them")
        prompts = self.config.prompts
        if name is not None and name not in prompts:
            known = ", ".join(sorted(prompts)) or "none; set prompt to the text itself"
            raise InvalidRequest(f"this model has no prompt {name!r}; available: {known}")
        text = prompts[name] if name is not None else prompt
        found = self.config.default_prompt if text is None else text
        head = self.config.head
        if found and isinstance(head, VectorHead) and not head.includes_prompt:
            raise UnsupportedFeature("this model excludes its prompt from pooling, which is not supported")
        return found

    def _prepare(self, text: str) -> str:
        return self._cased(self.prompt + text)

    def _cased(self, text: str) -> str:
        return text.lower() if self.config.lower_case else text

    def _checked(self, index: int, ids: list[int]) -> list[int]:
        if not ids:
            raise InvalidRequest(f"input {index} is an empty list, expected text or at least one token id")
        # OpenVINO would read out of bounds.
        if min(ids) < 0 or max(ids) >= self.config.bert.vocab_size:
            raise InvalidRequest(
                f"input {index} has token ids outside 0 to {self.config.bert.vocab_size - 1}"
            )
        return ids

    def _known(self, index: int, ids: list[int]) -> list[int]:
        """Ids of a text; a tokenizer may have more tokens than its model."""
        if not ids:
            raise InvalidRequest(f"input {index} has no tokens, expected at least one")
        if max(ids) >= self.config.bert.vocab_size:
            raise InvalidRequest(
                f"input {index} has the token {max(ids)} of the tokenizer, but the model has only "
                f"{self.config.bert.vocab_size} tokens; leave it out"
            )
        return ids

    def _known_types(self, types: list[int]) -> list[int] | None:
        if not self.config.bert.pair_types:
            return None
        if max(types) > 1:
            raise InvalidRequest(
                f"the model's tokenizer returns the token type {max(types)}, expected 0 or 1"
            )
        return types
