"""The process that runs NIXL: orders on its standard input, answers on its standard output, one JSON object a line."""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sage_infer_nixl.agent.moves import Mover, Order
from sage_infer_nixl.agent.peers import Agent
from sage_infer_nixl.control import Place, read_line

_THREADS = 32
_END_S = 2.0

Answer = Callable[[Mapping[str, Any]], None]


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    answer = _answerer()
    try:
        agent = Agent()
    except ImportError as error:
        answer({"missing": str(error)})
        return 1
    except Exception as error:  # whatever native code raises
        answer({"error": f"{type(error).__name__}: {error}"})
        return 1
    address = 0
    if arguments:
        memory = mmap.mmap(int(arguments[0]), int(arguments[1]))
        address = agent.register(memory)
    answer(Place(agent.name, agent.metadata(), address, 0).as_json())
    return _serve(agent, answer)


def _answerer() -> Answer:
    """Writes to what was standard output, which belongs to standard error from now on: NIXL prints its log there."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    lock = threading.Lock()

    def answer(message: Mapping[str, Any]) -> None:
        with lock:
            out.write(json.dumps(message).encode() + b"\n")

    return answer


def _serve(agent: Agent, answer: Answer) -> int:
    mover, orders, pool = Mover(agent), dict[int, Order](), ThreadPoolExecutor(_THREADS)

    def carry_out(order: Order) -> None:
        error = mover.move(order)
        orders.pop(order.number, None)
        answer({"number": order.number} if error is None else {"number": order.number, "error": error})

    while (message := read_line(sys.stdin.buffer)) is not None:
        if message.get("do") == "move":
            order = Order.of(message)
            orders[order.number] = order
            pool.submit(carry_out, order)
        elif message.get("do") == "stop":
            stopped = orders.get(message["number"])
            if stopped is not None:
                stopped.stop.set()
    for order in list(orders.values()):
        order.stop.set()
    end = time.monotonic() + _END_S
    while orders:
        if time.monotonic() > end:
            os._exit(1)  # native code does not return
        time.sleep(0.01)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
