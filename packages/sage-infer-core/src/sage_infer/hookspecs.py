"""The hooks that a plug-in module can implement.

A plug-in is a module named by an entry point in the group ``sage_infer.backends``. It holds functions marked with
``sage_infer.hookimpl`` and imports nothing heavy: it is imported whenever the ``sage`` command lists something. A
module may set ``SAGE_INFER_CONTRACT = "1.0"``, the contract version that it was written against.

All hooks take no arguments, are called at most once a process, in no promised order, and return a list of specs. A
hook that raises, or returns anything else, is reported as that plug-in's fault and takes no other plug-in down. Two
specs of one kind with one name are both refused, and both are reported.
"""

from __future__ import annotations

import pluggy

from sage_infer.specs import (
    BackendSpec,
    CommandSpec,
    ConfigSpec,
    DetectorSpec,
    ExecutorSpec,
    KVFormatSpec,
    KVStoreSpec,
    ModelSpec,
    TransportSpec,
)

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "sage_infer"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# -------------------------------------------------------------------------
# Engines and machines
# -------------------------------------------------------------------------


@hookspec
def sage_infer_backends() -> list[BackendSpec]:
    """Engines that this wheel brings.

    :return: One spec for each name that ``open_backend`` should know.

    Called when backends are listed or one is opened: by ``sage infer backend …``, by ``open_backend`` and by the
    control plane. The factory is resolved only when the backend is opened.

    Order: backends are listed by name, whatever order the plug-ins come in.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_detectors() -> list[DetectorSpec]:
    """Hardware detectors that this wheel brings.

    :return: One spec for each detector.

    Called when the hardware is described, and when a backend's state depends on hardware other than ``cpu``: then
    only the spec's ``device_nodes`` are looked at and the detector itself is not made.

    Order: profiles of several detectors are merged by device; the order does not matter.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


# -------------------------------------------------------------------------
# KV: where it lives, how it moves
# -------------------------------------------------------------------------


@hookspec
def sage_infer_kv_stores() -> list[KVStoreSpec]:
    """KV stores that this wheel brings.

    :return: One spec for each store.

    Called when a store is opened by name: by the KV connectors of engines and by prefill/decode disaggregation.

    Order: does not matter; stores are chosen by name.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_kv_formats() -> list[KVFormatSpec]:
    """Codecs of private KV formats that this wheel brings.

    :return: One spec for each codec.

    Called when KV of one private format is wanted in another form: the codec is chosen by the schema's ``format_id``.

    Order: does not matter; two codecs that match one ``format_id`` are an error that names both.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_transports() -> list[TransportSpec]:
    """Transports that this wheel brings.

    :return: One spec for each transport.

    Called when a ``TransportPlan`` is to be executed; the transport is chosen by the URI schemes of the plan's
    locations, or by name.

    Order: where several transports reach a scheme, the configuration names the one to use.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


# -------------------------------------------------------------------------
# Around the engines
# -------------------------------------------------------------------------


@hookspec
def sage_infer_executors() -> list[ExecutorSpec]:
    """Executors that this wheel brings: places where replicas run.

    :return: One spec for each executor.

    Called by the control plane when it starts replicas.

    Order: does not matter; executors are chosen by name.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_models() -> list[ModelSpec]:
    """Models that this wheel can find by name.

    :return: One spec for each name that ``--model`` should take.

    Called when a model name is neither a path nor a hub id, and by ``sage infer model list``. Files are fetched
    only by ``sage infer model add``.

    Order: names of the user's configuration win over plug-ins' names.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_commands() -> list[CommandSpec]:
    """Commands that this wheel adds below ``sage``.

    :return: One spec for each command or group of commands.

    Called when ``sage`` meets a command that it does not have itself, or prints help. The typer app is imported
    only when the command runs.

    Order: commands are listed by name. A built-in command cannot be replaced.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_config() -> list[ConfigSpec]:
    """Sections of ``sage_infer.yaml`` that this wheel reads.

    :return: One spec for each section.

    Called when the configuration is read, shown, checked or written. The class of the settings is imported then, the
    template only when a file is written.

    Order: sections follow those of the core, by name. A section of the core cannot be replaced.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")
