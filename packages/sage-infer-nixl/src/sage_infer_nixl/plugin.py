"""Plug-in of this wheel. Imports nothing else."""

from sage_infer import hookimpl, specs

SAGE_INFER_CONTRACT = "1.0"


@hookimpl
def sage_infer_transports() -> list[specs.TransportSpec]:
    return [
        specs.TransportSpec(
            name="nixl",
            factory="sage_infer_nixl.transport:NIXLTransport",
            schemes={"nixl", "shm", "file"},
            endpoint="sage_infer_nixl.endpoint:NIXLEndpoint",
            requires={"nixl-cu12 | nixl-cu13 | nixl-rocm": ">=1.5,<2"},
            install="pip install 'sage-infer-nixl[cu12]', or [cu13] for CUDA 13",
            summary="NIXL and UCX: RDMA between hosts that have it, TCP and shared memory elsewhere",
        )
    ]
