"""An installed plug-in for the tests of the core: engines that work or fail to start, and commands."""

from sage_infer import BackendSpec, CommandSpec, hookimpl

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_backends() -> list[BackendSpec]:
    return [
        BackendSpec(name="toy", factory="toy_engine:ToyBackend", serves={"llm"}, summary="says the prompt backwards",
                    prepare="toy_engine:prepare", options={"delay": "ignored"}),
        BackendSpec(name="toy-embedding", factory="toy_engine:ToyEmbedding", serves={"embedding", "reranker"}),
        BackendSpec(name="toy-lost", factory="toy_engine:NoSuchThing", serves={"llm"}),
        BackendSpec(name="toy-npu", factory="toy_engine:ToyBackend", serves={"llm"}, hardware={"npu"},
                    device_nodes=["/nowhere/npu*"]),
        BackendSpec(name="toy-needy", factory="toy_engine:ToyBackend", serves={"llm"},
                    requires={"no-such-distribution": ">=2", "attrs": ">=999"}),
    ]  # fmt: skip


@hookimpl
def sage_infer_commands() -> list[CommandSpec]:
    return [
        CommandSpec(path="toy greet", app="toy_engine:greet", summary="Say hello.", group="Play."),
        CommandSpec(path="toy interrupted", app="toy_engine:interrupted", summary="End as by Ctrl-C."),
        CommandSpec(path="toy broken", app="toy_engine:broken", summary="Fail as a bug does."),
    ]
