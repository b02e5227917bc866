"""The executor ``quokka``: replicas in the caller's process."""

from sage_infer.backends import create_backend
from sage_infer.sdk import BackendReplica, BaseExecutor


class QuokkaExecutor(BaseExecutor):
    async def launch(self, spec):
        backend = create_backend(spec.backend, model=spec.model, **spec.options)
        try:
            await backend.start()
            return BackendReplica(spec, backend)
        except BaseException:
            await backend.close()
            raise
