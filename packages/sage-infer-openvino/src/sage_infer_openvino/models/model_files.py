"""Resolve a model path to files, and load a tokenizer without weights."""

from __future__ import annotations

import json
from pathlib import Path

from sage_infer.errors import ModelFileError, ModelNotFound
from sage_infer.models import check_model_files, read_model_text
from sage_infer.schemas import ModelDescriptor

from sage_infer_openvino.models.gguf.file import GgufFile, part_paths
from sage_infer_openvino.models.text_codec import DecoderTexts
from sage_infer_openvino.models.tokenizer import TextTokenizer

__all__ = ["find_model_file", "open_texts"]


def find_model_file(path: str | Path) -> Path:
    """The absolute path of the GGUF file (the first of several parts) or Hugging Face folder at ``path``.

    Raises :class:`ModelNotFound` if the path does not exist, and :class:`ModelFileError` if a folder does not contain
    exactly one model, or holds a named pipe, a socket, a device or a folder in place of one of its files.
    """
    path = Path(path).expanduser().resolve()
    check_model_files(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelNotFound(f"{path}: no such file or folder; expected a .gguf file or a Hugging Face folder")
    if (path / "config.json").is_file():
        return path
    found = sorted(path.glob("*.gguf"))
    if found and set(found) <= set(part_paths(found[0])):
        return found[0]
    names = ", ".join(file.name for file in found)
    if found:
        raise ModelFileError(
            f"{path}: the folder contains several models ({names}); specify one of the files"
        )
    raise ModelFileError(
        f"{path}: the folder contains neither a config.json nor a .gguf file; expected one model"
    )


def open_texts(model: ModelDescriptor) -> DecoderTexts:
    """The model's tokenizer and chat template (``BackendSpec.tokenizer``); no weights are read.

    Raises:
        ModelNotFound, ModelFileError: the model does not exist, or its tokenizer cannot be read.
    """
    source = find_model_file(model.model_path)
    if source.is_file():
        file = GgufFile(source)
        embedding = file.tensors.get("token_embd.weight")
        tokenizer = TextTokenizer.from_gguf(file)
        return DecoderTexts(tokenizer, tokenizer.vocab_size if embedding is None else embedding.shape[0])
    tokenizer = TextTokenizer.from_folder(source)
    return DecoderTexts(tokenizer, _vocab_size(source) or tokenizer.vocab_size)


def _vocab_size(folder: Path) -> int | None:
    try:
        config = json.loads(read_model_text(folder / "config.json"))
        size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"{folder / 'config.json'}: not a valid model config: {error!r}") from error
    return size if isinstance(size, int) else None
