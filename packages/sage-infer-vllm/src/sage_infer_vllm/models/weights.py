"""Identities of a model's weights, equal for every copy of its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import xxhash
from attrs import frozen
from sage_infer.errors import ModelFileError
from sage_infer.models import open_model_file
from sage_infer.sdk import weights_id_of

__all__ = ["WeightIds", "adapter_id", "weight_ids"]

_OTHER_SUFFIXES = {".bin", ".pt", ".pth"}
_PIECE = 16 * 2**20


@frozen
class WeightIds:
    """Attributes:
    weights_id: ``sdk.weights_id_of`` the folder; empty if its weights are not safetensors.
    content: hash of the configuration and all weights, in hex.
    """

    weights_id: str
    content: str


def weight_ids(folder: Path) -> WeightIds:
    """Read all weight files of a folder; xxhash releases the GIL.

    Raises:
        ModelFileError: a file cannot be read.
    """
    weights_id = weights_id_of(folder)
    content = xxhash.xxh3_128(weights_id.encode())
    others = () if weights_id else sorted(file for file in folder.iterdir() if file.suffix in _OTHER_SUFFIXES)
    _add(content, folder, [folder / "config.json", *others])
    return WeightIds(weights_id, content.hexdigest())


def adapter_id(folder: Path) -> str:
    """Hash of an adapter in PEFT's format, in hex.

    Raises:
        ModelFileError: a file cannot be read.
    """
    content = xxhash.xxh3_128()
    weights = {".safetensors", *_OTHER_SUFFIXES}
    _add(
        content,
        folder,
        [folder / "adapter_config.json", *sorted(f for f in folder.iterdir() if f.suffix in weights)],
    )
    return content.hexdigest()


def _add(content: xxhash.xxh3_128, folder: Path, files: Iterable[Path]) -> None:
    try:
        for file in files:
            content.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with open_model_file(file) as stream:
                while piece := stream.read(_PIECE):
                    content.update(piece)
    except OSError as error:
        raise ModelFileError(f"{folder} cannot be read ({error}); check the model's files") from error
