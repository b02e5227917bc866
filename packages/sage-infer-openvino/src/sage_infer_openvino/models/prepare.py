"""Prepares a model's files once: converts them to OpenVINO's format, with tokenizer and config, in a cache folder.

Preparation takes seconds and happens on first use, or ahead of time by ``sage infer model add``. Prepared models are
memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import attrs
from sage_infer.errors import ModelFileError
from sage_infer.sdk import weights_id_of
from sage_infer.sdk.prepared import PreparedCache, Progress

from sage_infer_openvino.models.decoder_graph import build_decoder
from sage_infer_openvino.models.decoder_weights import DecoderConfig
from sage_infer_openvino.models.file_checks import reading
from sage_infer_openvino.models.gguf.file import part_paths
from sage_infer_openvino.models.gguf.model import GgufModel
from sage_infer_openvino.models.hf_model import HfModel
from sage_infer_openvino.models.model_files import find_model_file
from sage_infer_openvino.models.tokenizer import TextTokenizer
from sage_infer_openvino.models.weight_format import WeightFormat
from sage_infer_openvino.ov_runtime import ov

__all__ = ["PREPARED_VERSION", "PreparedDecoder", "prepare_decoder"]

PREPARED_VERSION = 3
"""Version of the format below. Increase it with every change; older entries are then rebuilt."""

_SOURCE_FILES = ("*.json", "*.jinja", "*.safetensors")


@attrs.frozen(kw_only=True)
class PreparedDecoder:
    """A prepared language model in the cache. Its files must not be modified."""

    folder: Path
    xml: Path
    bin: Path
    config: DecoderConfig
    weight_format: WeightFormat
    fingerprint: str
    """SHA-256 of the prepared weights and the config. Models with equal fingerprints compute equal KV on equal OpenVINO
    versions.
    """

    weights_id: str
    """Hash of the weights in the source files; see ``sdk.weights``."""

    def load_tokenizer(self) -> TextTokenizer:
        return TextTokenizer.load(self.folder)

    @property
    def weight_nbytes(self) -> int:
        return self.bin.stat().st_size


def prepare_decoder(
    path: str | Path,
    *,
    cache_dir: str | Path,
    weight_format: WeightFormat = "int8",
    progress: Progress | None = None,
) -> PreparedDecoder:
    """Prepare a GGUF file, or a folder with one GGUF file or a Hugging Face model, below ``cache_dir``.

    A complete entry for the same files (path, sizes, modification times) and versions is reused. Raises
    :class:`ModelNotFound`, :class:`ModelFileError` or :class:`UnsupportedFeature` for the model, and
    :class:`ConfigError` for the cache folder.
    """
    report = progress or (lambda stage, done: None)
    source = find_model_file(path)
    identity = {
        "prepared_version": PREPARED_VERSION,
        "openvino": ov.get_version(),
        "weight_format": weight_format,
        "source": str(source),
        "files": _fingerprints(source),
    }

    def build(folder: Path) -> None:
        report("reading", 0.0)
        with reading(str(source)):
            model = GgufModel(source) if source.is_file() else HfModel(source)
            tokenizer = (
                TextTokenizer.from_gguf(model.file)
                if isinstance(model, GgufModel)
                else TextTokenizer.from_folder(source)
            )
            graph = build_decoder(model, weight_format, lambda done: report("converting", 0.1 + 0.6 * done))
        report("writing", 0.7)
        try:
            ov.serialize(graph, str(folder / "model.xml"), str(folder / "model.bin"))
        except RuntimeError as error:
            # OpenVINO reports a full disk in this way; the cache converts it to a clear error.
            raise OSError(f"OpenVINO stopped writing ({error})") from error
        tokenizer.save(folder)
        (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1), encoding="utf-8")
        report("checking", 0.85)
        source_facts = {"weights_id": weights_id_of(source)}
        (folder / "source.json").write_text(json.dumps(source_facts), encoding="utf-8")
        report("checking", 0.9)

    cache = PreparedCache(cache_dir)
    folder = cache.get_or_build(f"{source.stem}-{weight_format}", identity, build)
    cache.remove_outdated(
        lambda other: other.get("source") == identity["source"] and other.get("files") != identity["files"]
    )
    report("ready", 1.0)
    return _open(folder, weight_format)


def _fingerprints(source: Path) -> list[list[Any]]:
    """Name, size and modification time of every source file."""
    files = (
        part_paths(source)
        if source.is_file()
        else sorted({file for glob in _SOURCE_FILES for file in source.glob(glob)})
    )
    stats = [(file.name, file.stat()) for file in files if file.exists()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _fingerprint(weights: str, config: DecoderConfig) -> str:
    """Hash of weights and config, not of the XML, whose node numbers differ between processes."""
    computed = {**config.to_dict(), "weights": weights, "version": PREPARED_VERSION}
    for other in ("architecture", "name", "bos_token_id", "eos_token_ids", "pad_token_id"):
        del computed[other]
    return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()


def _open(folder: Path, weight_format: WeightFormat) -> PreparedDecoder:
    try:
        config = DecoderConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        weights = manifest["files"]["model.bin"]["sha256"]
        weights_id = json.loads((folder / "source.json").read_text(encoding="utf-8"))["weights_id"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelFileError(
            f"{folder}: the prepared model cannot be read ({error!r}); delete this folder and try again"
        ) from error
    return PreparedDecoder(
        folder=folder,
        xml=folder / "model.xml",
        bin=folder / "model.bin",
        config=config,
        weight_format=weight_format,
        fingerprint=_fingerprint(weights, config),
        weights_id=weights_id,
    )
