"""Plug-in of this wheel. Does not import the server."""

from sage_infer import CommandSpec, ConfigSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"

_KEYS = "API keys of the server."


@hookimpl
def sage_infer_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            path="infer serve",
            app="sage_infer_serve.cli:serve",
            summary="Serve models behind an OpenAI-compatible API.",
        ),
        CommandSpec(
            path="infer bench",
            app="sage_infer_serve.bench.command:bench",
            summary="Measure an OpenAI-compatible server: latency and throughput.",
        ),
        CommandSpec(
            path="infer key add",
            app="sage_infer_serve.keys_cli:add",
            summary="Create an API key.",
            group=_KEYS,
        ),
        CommandSpec(
            path="infer key list",
            app="sage_infer_serve.keys_cli:list_",
            summary="List API keys by name.",
            group=_KEYS,
        ),
        CommandSpec(
            path="infer key remove",
            app="sage_infer_serve.keys_cli:remove",
            summary="Revoke an API key.",
            group=_KEYS,
        ),
    ]


@hookimpl
def sage_infer_config() -> list[ConfigSpec]:
    return [
        ConfigSpec(
            name="serve",
            settings="sage_infer_serve.config:Serve",
            template="sage_infer_serve.config:TEMPLATE",
        )
    ]
