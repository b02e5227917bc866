"""Identify the model at a path and read facts from its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attrs import frozen

from sage_infer.errors import ModelFileError
from sage_infer.models import gguf
from sage_infer.models.files import check_model_files, open_model_file, read_model_text
from sage_infer.models.lfs import is_pointer
from sage_infer.names import ModelType

__all__ = ["ModelFiles", "inspect_model", "is_whole"]

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "openvino*.xml", "*.onnx", "onnx/*.onnx", "*.pt", "*.pth")
_POOLING = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


@frozen(kw_only=True)
class ModelFiles:
    """A model on disk.

    Attributes:
        path: the GGUF file, or the folder in Hugging Face layout.
        model_type: kind of model according to the files; None if they do not tell.
        embedding_dim: length of its vectors (embedding models), if the files tell.
        pooling_type: mean, cls or last (embedding models), if the files tell.
        max_pair_length: longest pair in tokens (rerankers), if the files tell.
    """

    path: Path
    model_type: ModelType | None
    embedding_dim: int | None = None
    pooling_type: Any = None
    max_pair_length: int | None = None


def inspect_model(path: Path) -> ModelFiles:
    """Inspect a GGUF file or a model folder without reading weights.

    Raises:
        ModelFileError: there is no model at ``path``, it is incomplete, or there are several to choose from;
            or one of its files is a named pipe, a socket, a device or a folder.
    """
    check_model_files(path)
    if not path.is_dir():
        return ModelFiles(path=path, model_type=gguf.model_type(path))
    if (path / "config.json").is_file():
        has_weights = any(next(path.glob(pattern), None) for pattern in _WEIGHTS)
        if has_weights or not any(path.glob("*.gguf")):
            return _folder(path, has_weights)
    return _gguf_folder(path)


def is_whole(path: Path) -> bool:
    """Whether there is a complete model at ``path``."""
    try:
        inspect_model(path)
    except ModelFileError:
        return False
    return True


def _gguf_folder(path: Path) -> ModelFiles:
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        shard = gguf.first_shard(files)
        if shard is None:
            names = ", ".join(file.name for file in files[:8]) + (", …" if len(files) > 8 else "")
            raise ModelFileError(
                f"{path} holds {len(files)} GGUF files; pass the path of one of them: {names}"
            )
        files = [shard]
    if files:
        return ModelFiles(path=files[0], model_type=gguf.model_type(files[0]))
    if next(path.iterdir(), None) is None:
        raise ModelFileError(f"{path} is an empty folder; a model folder has a config.json or one .gguf file")
    raise ModelFileError(f"{path} is not a model: it has neither a config.json nor a .gguf file")


def _folder(path: Path, has_weights: bool) -> ModelFiles:
    config = _json(path / "config.json")
    if not has_weights:
        raise ModelFileError(
            f"{path} has a config.json but no weights (such as model.safetensors); copy the whole folder"
        )
    _check_weights(path)
    kind = _model_type(path, config)
    if kind == "reranker":
        return ModelFiles(
            path=path, model_type=kind, max_pair_length=_positive(config, "max_position_embeddings")
        )
    if kind != "embedding":
        return ModelFiles(path=path, model_type=kind)
    pooling_file = path / "1_Pooling" / "config.json"
    pooling = _json(pooling_file) if pooling_file.is_file() else {}
    modes = [mode for key, mode in _POOLING.items() if pooling.get(key) is True]
    return ModelFiles(
        path=path,
        model_type=kind,
        embedding_dim=_dense_dim(path)
        or _positive(pooling, "word_embedding_dimension")
        or _positive(config, "hidden_size"),
        pooling_type=modes[0] if len(modes) == 1 else None,
    )


def _dense_dim(path: Path) -> int | None:
    """Output length of the last Dense module of a sentence-transformers folder; None without one."""
    modules = path / "modules.json"
    try:
        listed = json.loads(read_model_text(modules)) if modules.is_file() else []
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{modules} cannot be read: {error}") from None
    dims = [
        _positive(_json(path / str(module["path"]) / "config.json"), "out_features")
        for module in (listed if isinstance(listed, list) else ())
        if isinstance(module, dict) and str(module.get("type")).endswith(".Dense") and "path" in module
    ]
    return dims[-1] if dims else None


def _model_type(path: Path, config: dict[str, Any]) -> ModelType | None:
    """Derived from the head of the architecture; a sentence-transformers folder is an embedding model."""
    names = config.get("architectures")
    architectures = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return "reranker"
    if (path / "modules.json").is_file():
        return "embedding"
    if "vision_config" in config or "audio_config" in config:
        return "multimodal"
    if any(
        name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures
    ):
        return "llm"
    if any(name.endswith("Model") for name in architectures):
        return "embedding"
    return None


def _check_weights(path: Path) -> None:
    """Check that every file named by the safetensors index exists and is not a Git LFS pointer."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _json(index).get("weight_map")
        names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
        missing = [name for name in names if not (path / str(name)).is_file()]
        if missing:
            shown = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
            raise ModelFileError(
                f"{path} is incomplete: {len(missing)} of {len(names)} weight files missing: {shown}"
            )
    for file in path.glob("*.safetensors"):
        try:
            with open_model_file(file) as stream:
                head = stream.read(64)
        except OSError as error:
            raise ModelFileError(f"{file} cannot be read: {error.strerror or error}") from None
        if is_pointer(head):
            raise ModelFileError(
                f"{file} is a Git LFS pointer, not weights; run `git lfs pull` in its repository"
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_model_text(path))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelFileError(f"{path} must hold a JSON object, got a {type(data).__name__}")
    return data


def _positive(data: dict[str, Any], key: str) -> int | None:
    value = data.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
