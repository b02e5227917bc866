"""Converts a GGUF file to a Hugging Face folder with exact weights.

vLLM's own GGUF reader is a plug-in for CUDA. transformers, a dependency of vLLM, supports the names, the permuted
rows of each family and the tokenizers; the package ``gguf`` dequantizes. Scales have half precision and zero points
are not rounded, so float32 is the smallest type that stores every product exactly.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sage_infer.errors import ModelFileError, UnsupportedFeature
from sage_infer.sdk.gguf import read_metadata
from sage_infer.sdk.prepared import Progress

__all__ = ["convert", "read_config", "read_tokenizer"]


def convert(source: Path, folder: Path, progress: Progress) -> None:
    """Write config, tokenizer and float32 weights of ``source`` to ``folder``.

    Raises:
        UnsupportedFeature: transformers does not support the architecture or tokenizer in GGUF.
        ModelFileError: the file is damaged or incomplete.
    """
    progress("reading", 0.0)
    config = read_config(source)
    with _reporting(progress, 0.2, 0.7):
        tensors, architecture = _tensors(source, config)
    progress("writing weights", 0.7)
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.architectures, config.dtype = [architecture], "float32"
    config.save_pretrained(folder)
    progress("converting the tokenizer", 0.9)
    read_tokenizer(source).save_pretrained(folder)


def read_config(source: Path) -> Any:
    """transformers' configuration of a GGUF file; raises as ``convert`` does."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    except (ValueError, KeyError) as error:
        raise _unsupported(source, error) from error
    except Exception as error:
        raise _damaged(source, error) from error


def _tensors(source: Path, config: Any) -> tuple[dict[str, Any], str]:
    """All weights of the model by their names in transformers, and the model class."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError) as error:
        raise _unsupported(source, error) from error
    try:
        loaded = load_gguf_checkpoint(
            str(source), return_tensors=True, model_to_load=model, **_dtype_argument(load_gguf_checkpoint)
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise _unsupported(source, error) from error
    except Exception as error:
        raise _damaged(source, error) from error
    tensors = {name: tensor.contiguous() for name, tensor in loaded["tensors"].items()}
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    missing = sorted(model.state_dict().keys() - tensors.keys() - tied)
    if missing:
        raise ModelFileError(
            f"{source} lacks {len(missing)} of the model's weights, including {missing[0]}; fetch the file again"
        )
    return tensors, type(model).__name__


def _dtype_argument(load: Callable[..., Any]) -> dict[str, Any]:
    """transformers 5 rounds to the configuration's type unless told otherwise; transformers 4 returns float32."""
    import torch

    return {"torch_dtype": torch.float32} if "torch_dtype" in inspect.signature(load).parameters else {}


def read_tokenizer(source: Path) -> Any:
    """transformers' tokenizer of a GGUF file; raises as ``convert`` does."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except Exception as error:
        raise _unsupported(source, error) from error
    _follow_bos(tokenizer, read_metadata(source))
    return tokenizer


def _follow_bos(tokenizer: Any, metadata: Mapping[str, Any]) -> None:
    """Add no BOS token if the file says so; the tokenizers that transformers 4 makes always add one."""
    if metadata.get("tokenizer.ggml.add_bos_token") is False and getattr(tokenizer, "add_bos_token", False):
        tokenizer.add_bos_token = False
        if hasattr(tokenizer, "update_post_processor"):
            tokenizer.update_post_processor()


def _unsupported(source: Path, error: Exception) -> UnsupportedFeature:
    return UnsupportedFeature(
        f"{source} cannot be converted for vLLM ({_line(error)}); use the model's Hugging Face folder"
    )


def _damaged(source: Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"{source} cannot be read ({_line(error)}); copy or download the model again")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


@contextlib.contextmanager
def _reporting(progress: Progress, start: float, end: float) -> Iterator[None]:
    """Report ``progress`` instead of transformers' progress bar."""
    from transformers import modeling_gguf_pytorch_utils as reader

    original = reader.tqdm

    def report(items: Sequence[Any], **_: Any) -> Iterator[Any]:
        for index, item in enumerate(items):
            progress("converting weights", start + (end - start) * index / len(items))
            yield item

    reader.tqdm = report
    try:
        yield
    finally:
        reader.tqdm = original
