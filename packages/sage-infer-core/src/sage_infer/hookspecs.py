"""The hooks that a plug-in module can implement.

A plug-in is a module named by an entry point in the group ``sage_infer.backends``. It contains functions marked with
``sage_infer.hookimpl``. It must not import heavy dependencies, because the ``sage`` command imports it for every
listing. The module can set ``SAGE_INFER_CONTRACT = "1.0"``, the contract version that it was written against.

Hooks take no arguments and return a list of specs. Each hook is called at most once per process, in no particular
order. A hook that raises, or returns anything else, is reported as a fault of its plug-in; other plug-ins are not
affected. If two specs of the same kind have the same name, both are rejected and reported.
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
# Engines and hardware
# -------------------------------------------------------------------------


@hookspec
def sage_infer_backends() -> list[BackendSpec]:
    """Engines that this wheel provides.

    :return: One spec per backend name.

    Called when backends are listed or one is opened: by ``sage infer backend …``, by ``open_backend`` and by the
    control plane. The factory is resolved only when the backend is opened.

    Order: does not matter; backends are listed by name.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_detectors() -> list[DetectorSpec]:
    """Hardware detectors that this wheel provides.

    :return: One spec per detector.

    Called when the hardware is described, and when a backend's state depends on hardware other than ``cpu``. In the
    second case only the spec's ``device_nodes`` are checked; the detector is not created.

    Order: does not matter; profiles of several detectors are merged by device.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


# -------------------------------------------------------------------------
# KV storage and transfer
# -------------------------------------------------------------------------


@hookspec
def sage_infer_kv_stores() -> list[KVStoreSpec]:
    """KV stores that this wheel provides.

    :return: One spec per store.

    Called when a store is opened by name: by the KV connectors of engines and by prefill/decode disaggregation.

    Order: does not matter; stores are chosen by name.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_kv_formats() -> list[KVFormatSpec]:
    """Codecs of private KV formats that this wheel provides.

    :return: One spec per codec.

    Called when KV in a private format is converted. The codec is chosen by the schema's ``format_id``.

    Order: does not matter; two codecs that match the same ``format_id`` are an error that names both.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_transports() -> list[TransportSpec]:
    """Transports that this wheel provides.

    :return: One spec per transport.

    Called before a ``TransportPlan`` is executed. The transport is chosen by the URI schemes of the plan's
    locations, or by name.

    Order: does not matter; if several transports support a scheme, the configuration selects one.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


# -------------------------------------------------------------------------
# Around the engines
# -------------------------------------------------------------------------


@hookspec
def sage_infer_executors() -> list[ExecutorSpec]:
    """Executors that this wheel provides.

    :return: One spec per executor.

    Called by the control plane when it starts replicas.

    Order: does not matter; executors are chosen by name.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_models() -> list[ModelSpec]:
    """Models that this wheel can find by name.

    :return: One spec per model name.

    Called when a model name is neither a path nor a hub id, and by ``sage infer model list``. Files are fetched
    only by ``sage infer model add``.

    Order: does not matter; aliases in the user's configuration take precedence over plug-ins' names.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_commands() -> list[CommandSpec]:
    """Commands that this wheel adds to ``sage``.

    :return: One spec per command or command group.

    Called when ``sage`` prints help, or is called with a command that is not built in. The typer app is imported
    only when the command runs.

    Order: commands are listed by name. A built-in command cannot be replaced.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")


@hookspec
def sage_infer_config() -> list[ConfigSpec]:
    """Sections of ``sage_infer.yaml`` that this wheel reads.

    :return: One spec per section.

    Called when the configuration is read, shown, checked or written. The settings class is imported each time, the
    template only when a file is written.

    Order: sections are sorted by name and follow the sections of the core, which cannot be replaced.

    .. versionadded:: 0.1
    """
    raise NotImplementedError("hook specification")
