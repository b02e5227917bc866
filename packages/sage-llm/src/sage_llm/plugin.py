"""Plug-in of this wheel. Does not import the control plane."""

from sage_infer import BackendSpec, CommandSpec, ConfigSpec, ExecutorSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"

_GROUP = "Control plane: serve models on several instances."


@hookimpl
def sage_infer_commands() -> list[CommandSpec]:
    operate = "sage_llm.commands.operate"
    return [
        CommandSpec(
            path="llm serve",
            app="sage_llm.commands.serve:serve",
            summary="Serve models on several instances behind one OpenAI-compatible API.",
            group=_GROUP,
        ),
        CommandSpec(
            path="llm status",
            app=f"{operate}:status",
            summary="Show the instances and their load.",
            group=_GROUP,
        ),
        CommandSpec(
            path="llm top", app=f"{operate}:top", summary="Show the status continuously.", group=_GROUP
        ),
        CommandSpec(
            path="llm drain",
            app=f"{operate}:drain",
            summary="Stop a replica; its requests continue on others.",
            group=_GROUP,
        ),
        CommandSpec(
            path="llm restart",
            app=f"{operate}:restart",
            summary="Restart all replicas, one after another.",
            group=_GROUP,
        ),
        CommandSpec(
            path="llm scale", app=f"{operate}:scale", summary="Change the number of replicas.", group=_GROUP
        ),
        CommandSpec(
            path="llm explain",
            app=f"{operate}:explain",
            summary="Show why a request was sent to its instance.",
            group=_GROUP,
        ),
        CommandSpec(
            path="llm simulate",
            app="sage_llm.commands.simulate:simulate",
            summary="Compare policies on a trace of requests.",
            group=_GROUP,
        ),
    ]


@hookimpl
def sage_infer_config() -> list[ConfigSpec]:
    return [
        ConfigSpec(
            name="llm", settings="sage_llm.commands.config:LLM", template="sage_llm.commands.config:TEMPLATE"
        )
    ]


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        BackendSpec(
            name="openai",
            factory="sage_llm.replicas.openai:open_server",
            serves={"llm", "embedding", "reranker"},
            requires={"httptools": ">=0.6"},
            options={
                "api_key_env": "name of the environment variable with the API key",
                "dialect": "request fields that the server accepts: openai, vllm or sage-infer; detected by default",
            },
            summary="a model on an OpenAI-compatible server; the model's path is the server's address",
            limits=(
                "Deltas have token ids only from vLLM.",
                "The load of other clients of the server is unknown.",
                "Requests do not continue on another instance.",
            ),
        )
    ]


@hookimpl
def sage_infer_executors() -> list[ExecutorSpec]:
    return [
        ExecutorSpec(
            name="local",
            factory="sage_llm.replicas.local:LocalExecutor",
            summary="replicas in this process or in child processes",
        )
    ]
