"""A language model's tokenizer: text to ids and back, special tokens, chat template, and streaming.

Read from a GGUF's metadata or a Hugging Face folder; saved as ``tokenizer.json`` (the format of the ``tokenizers``
library) and ``tokenizer_meta.json`` for data that this format cannot store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from sage_infer.errors import ModelFileError, UnsupportedFeature
from sage_infer.models import read_model_text
from sage_infer.sdk.answers import ModelFormat, answer_format
from sage_infer.sdk.chat_templates import TOOL_USE, ChatTemplates
from tokenizers import Tokenizer

from sage_infer_openvino.models.detokenizer import IncrementalDetokenizer, TokenBytes
from sage_infer_openvino.models.file_checks import special_token_id
from sage_infer_openvino.models.gguf.file import GgufFile
from sage_infer_openvino.models.gguf.tokenizer import build_tokenizer, end_of_generation_ids, special_id
from sage_infer_openvino.models.tokenizer_file import encoded, is_text, read_tokenizer

__all__ = ["IncrementalDetokenizer", "TextTokenizer", "TokenizerMeta"]

_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
_LARGEST_ID = 2**31 - 1  # a model may have more rows than its tokenizer has tokens


@attrs.frozen(kw_only=True)
class TokenizerMeta:
    """Data of a tokenizer besides its vocabulary."""

    eos_token_ids: tuple[int, ...] = ()
    """Ids that end a generation, the model's EOS first."""
    special_tokens: dict[str, str] = attrs.field(factory=dict)
    """Texts of ``bos_token``, ``eos_token``, ``pad_token`` and ``unk_token``, if they exist, for the chat template."""
    chat_template: str | None = None
    tool_template: str | None = None
    """The chat template ``tool_use``, if the model has a separate one for chats with tools."""


class TextTokenizer:
    """Encodes, decodes and renders chats for one model. Safe to use from several threads.

    Create one with :meth:`from_gguf`, :meth:`from_folder` (Hugging Face) or :meth:`load` (after :meth:`save`).
    """

    def __init__(self, tokenizer: Tokenizer, meta: TokenizerMeta) -> None:
        self._tokenizer = tokenizer
        # A tokenizer.json may configure truncation and padding, but prompts must not change silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.meta = meta
        self.eos_token_ids: tuple[int, ...] = meta.eos_token_ids
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        self.special_token_ids: frozenset[int] = frozenset(
            index for index, token in added.items() if token.special
        )
        self.token_bytes = TokenBytes(tokenizer)
        # Normalization shortens a text by a small factor at most (NFC joins up to three characters).
        self.longest_token: int = 3 * max(map(len, tokenizer.get_vocab(with_added_tokens=True)))
        self.chat_templates = (
            ChatTemplates(meta.chat_template, meta.tool_template, special_tokens=meta.special_tokens)
            if meta.chat_template
            else None
        )
        self.answer_format = None if self.chat_templates is None else self._format(self.chat_templates)

    def _format(self, templates: ChatTemplates) -> ModelFormat:
        calling = templates.calling
        return answer_format(
            templates.default.source,
            tool_template=calling.source if calling.reads_tools else "",
            special_tokens=[str(self._tokenizer.id_to_token(index)) for index in self.special_token_ids],
        )

    @classmethod
    def from_gguf(cls, file: GgufFile | str | Path) -> TextTokenizer:
        """Read a GGUF's metadata. Raises the errors of
        :func:`~sage_infer_openvino.models.gguf.tokenizer.build_tokenizer`.
        """
        if not isinstance(file, GgufFile):
            file = GgufFile(file)
        tokenizer = build_tokenizer(file)
        special = {}
        for name, key in zip(_SPECIAL_NAMES, ("bos", "eos", "padding", "unknown"), strict=True):
            index = special_id(file, key)
            token = tokenizer.id_to_token(index) if index is not None else None
            if token is not None:
                special[name] = token
        meta = TokenizerMeta(
            eos_token_ids=end_of_generation_ids(file),
            special_tokens=special,
            chat_template=_text(file, "tokenizer.chat_template"),
            tool_template=_text(file, f"tokenizer.chat_template.{TOOL_USE}"),
        )
        with _named(file.path):
            return cls(tokenizer, meta)

    @classmethod
    def from_folder(cls, folder: str | Path) -> TextTokenizer:
        """Read a Hugging Face folder: ``tokenizer.json``, and optionally ``tokenizer_config.json``,
        ``generation_config.json``, ``config.json``, ``chat_template.jinja`` and ``additional_chat_templates``.

        Raises :class:`ModelFileError`.
        """
        folder = Path(folder)
        tokenizer = read_tokenizer(folder / "tokenizer.json")
        config = _read_json(folder / "tokenizer_config.json")
        special = {
            name: text
            for name in _SPECIAL_NAMES
            if (text := _token_text(config.get(name), f"{folder / 'tokenizer_config.json'}: {name}"))
            is not None
        }
        ids: list[int] = []
        for source in (_read_json(folder / "generation_config.json"), _read_json(folder / "config.json")):
            found = source.get("eos_token_id")
            where = f"{folder}: eos_token_id"
            ids += [
                index
                for value in (found if isinstance(found, list) else [found])
                if (index := special_token_id(value, where, _LARGEST_ID)) is not None
            ]
        if "eos_token" in special and (index := tokenizer.token_to_id(special["eos_token"])) is not None:
            ids.append(index)
        templates = _folder_templates(folder, config)
        meta = TokenizerMeta(
            eos_token_ids=tuple(dict.fromkeys(ids)),
            special_tokens=special,
            chat_template=templates.get("default", templates.get(TOOL_USE)),
            tool_template=templates.get(TOOL_USE),
        )
        with _named(folder):
            return cls(tokenizer, meta)

    @classmethod
    def load(cls, folder: str | Path) -> TextTokenizer:
        """Read the files written by :meth:`save`. Raises :class:`ModelFileError` if they are missing or damaged."""
        folder = Path(folder)
        data = _read_json(folder / "tokenizer_meta.json", required=True)
        try:
            meta = TokenizerMeta(**{**data, "eos_token_ids": tuple(data["eos_token_ids"])})
        except (KeyError, TypeError) as error:
            raise ModelFileError(
                f"{folder / 'tokenizer_meta.json'}: not in the format of this version; prepare the model again"
            ) from error
        return cls(read_tokenizer(folder / "tokenizer.json"), meta)

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_meta.json`` to an existing folder."""
        folder = Path(folder)
        self._tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        text = json.dumps(attrs.asdict(self.meta), ensure_ascii=False, indent=1)
        (folder / "tokenizer_meta.json").write_text(text, encoding="utf-8")

    def to_json(self) -> str:
        """The tokenizer in the format of the ``tokenizers`` library."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of ``text``. Special tokens in the text are recognized. ``add_special`` adds BOS and other special
        tokens of the model; use ``False`` for the result of :meth:`render_chat`, which already contains them.
        """
        ids: list[int] = encoded(
            lambda given: self._tokenizer.encode(given, add_special_tokens=add_special), text
        ).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ``ids``, equal to the joined output of a :meth:`detokenizer`; ids without a token have no text."""
        stream = self.detokenizer(skip_special)
        return stream.push_all(ids) + stream.flush()

    def detokenizer(self, skip_special: bool = True) -> IncrementalDetokenizer:
        """A new incremental detokenizer."""
        return IncrementalDetokenizer(self.token_bytes, self.special_token_ids if skip_special else ())

    def token_id(self, text: str) -> int | None:
        """The id of a token in the vocabulary's spelling, or ``None``."""
        found: int | None = self._tokenizer.token_to_id(text)
        return found

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render a chat as a prompt; encode it with ``add_special=False``.

        The parameters and errors are those of :meth:`ChatTemplates.render
        <sage_infer.sdk.chat_templates.ChatTemplates.render>`. Raises :class:`UnsupportedFeature` if the model has no
        template.
        """
        if self.chat_templates is None:
            raise UnsupportedFeature(
                "this model has no chat template; send a prompt, or use an instruction-tuned model"
            )
        return self.chat_templates.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables
        )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the path before errors of what was read from its files."""
    try:
        yield
    except (ModelFileError, UnsupportedFeature) as error:
        raise type(error)(f"{path}: {error}") from error


def _text(file: GgufFile, key: str) -> str | None:
    value = file.metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise ModelFileError(f"{file.path}: metadata {key} is a {type(value).__name__}, expected a string")
    return value


def _read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    try:
        data = json.loads(read_model_text(path))
    except FileNotFoundError:
        if required:
            raise ModelFileError(f"{path}: not found; prepare the model again") from None
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(data, dict):
        raise ModelFileError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _token_text(value: Any, where: str) -> str | None:
    """The text of a special token, which is stored as a string, or as an object with a ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str):
        return None
    if not is_text(value):
        raise ModelFileError(f"{where} is {value!r}, which is not valid Unicode; the file is damaged")
    return value


def _folder_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name; ``default`` is the unnamed one. Files take precedence over ``tokenizer_config.json``."""
    given = config.get("chat_template")
    named: dict[Any, Any] = {"default": given}
    if isinstance(given, list):
        named = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)}
    found = {name: text for name, text in named.items() if isinstance(name, str) and isinstance(text, str)}
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, file in {**files, "default": folder / "chat_template.jinja"}.items():
        if file.is_file():
            try:
                found[name] = read_model_text(file, "utf-8-sig")
            except (OSError, UnicodeError) as error:
                raise ModelFileError(f"{file}: cannot be read as UTF-8: {error}") from error
    return found
