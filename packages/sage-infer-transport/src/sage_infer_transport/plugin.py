"""Plug-in of this wheel: two transports and the commands ``sage infer transport …``."""

from sage_infer import CommandSpec, hookimpl, specs

SAGE_INFER_CONTRACT = "1.0"

_GROUP = "Transports: measure links and recommend a preset."
_COMMANDS = {
    "listen": "Let another host measure the link to this one.",
    "probe": "Measure the links from this host and recommend a preset.",
}


@hookimpl
def sage_infer_transports() -> list[specs.TransportSpec]:
    return [
        specs.TransportSpec(
            name="local",
            factory="sage_infer_transport.local:LocalTransport",
            schemes={"shm", "file"},
            endpoint="sage_infer_transport.shared_memory:SharedMemoryEndpoint",
            summary="shared memory and files of one host",
        ),
        specs.TransportSpec(
            name="tcp",
            factory="sage_infer_transport.tcp.transport:TCPTransport",
            schemes={"tcp", "shm", "file"},
            endpoint="sage_infer_transport.tcp.endpoint:TCPEndpoint",
            summary="TCP between hosts, resumed after an interruption",
        ),
    ]


@hookimpl
def sage_infer_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            path=f"infer transport {name}",
            app=f"sage_infer_transport.cli:{name}",
            summary=summary,
            group=_GROUP,
        )
        for name, summary in _COMMANDS.items()
    ]
