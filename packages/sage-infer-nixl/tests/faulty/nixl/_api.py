"""NIXL with the fault that the environment names, in its native code or in its installation."""

import os
import signal
import time
from types import SimpleNamespace

FAULT = os.environ["SAGE_TEST_NIXL_FAULT"]

if FAULT == "no torch":
    raise ModuleNotFoundError("No module named 'torch'", name="torch")
if FAULT == "crashes":
    print("a stack of native code", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if FAULT == "hangs":
    time.sleep(600)

if FAULT in ("raises", "no UCX"):
    nixlBind = SimpleNamespace(nixlAgent=None, nixlBackendError=type("nixlBackendError", (Exception,), {}))
    nixl_agent_config = dict

    def nixl_agent(name, config):
        if FAULT == "raises":
            raise ValueError("no such plug-in")
        return SimpleNamespace(backends={"POSIX": 1})

else:
    from nixl_cu12 import _api as real

    nixlBind, nixl_agent_config = real.nixlBind, real.nixl_agent_config

    class nixl_agent(real.nixl_agent):
        def register_memory(self, *arguments, **keywords):
            if FAULT == "registers nothing":
                return None
            return super().register_memory(*arguments, **keywords)

        def check_xfer_state(self, handle):
            state = super().check_xfer_state(handle)
            return {"never ends": "PROC", "reports an error": "ERR"}.get(FAULT, state)

        def transfer(self, handle):
            state = super().transfer(handle)
            return {"never ends": "PROC", "reports an error": "ERR"}.get(FAULT, state)
