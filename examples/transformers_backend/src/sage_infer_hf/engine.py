"""The engine: Hugging Face transformers on PyTorch, one sequence per step, with the KV cache of running sequences."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sage_infer.errors import ModelFileError
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

__all__ = ["Engine"]

KEPT = 256  # likeliest tokens that are sampled from
CACHES = 32  # sequences whose KV is kept


class Engine:
    """One model folder."""

    def __init__(self, path: Path) -> None:
        if not (path / "config.json").is_file():
            raise ModelFileError(f"{path} has no config.json; name the folder of a Hugging Face model")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self._model: Any = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
        except (OSError, ValueError, KeyError) as error:
            raise ModelFileError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from error
        ends = self._model.generation_config.eos_token_id
        self.end_token_ids = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
        self.vocabulary: int = self._model.config.vocab_size
        self.max_sequence_length: int = self._model.config.max_position_embeddings
        self._caches: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text)
        return found

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def weights(self, token_ids: Sequence[int]) -> Mapping[int, float]:
        sequence = tuple(token_ids)
        with self._lock, torch.inference_mode():
            cache = self._caches.pop(sequence[:-1], None)
            new = sequence if cache is None else sequence[-1:]
            out = self._model(torch.tensor([new]), past_key_values=cache or DynamicCache(), use_cache=True)
            self._caches[sequence] = out.past_key_values
            if len(self._caches) > CACHES:
                self._caches.popitem(last=False)
        logits, ids = out.logits[0, -1].topk(min(KEPT, self.vocabulary))
        weights = (logits.double() - logits[0]).exp()
        return dict(zip(ids.tolist(), weights.tolist(), strict=True))

    def close(self) -> None:
        self._caches.clear()
        del self._model
