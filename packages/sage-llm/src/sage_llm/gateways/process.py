"""A gateway process: the API, and a control plane over replicas that another process owns."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
from typing import Any

import attrs
from sage_infer.compat import Runner, wait_for
from sage_infer.errors import SageInferError
from sage_infer_serve.gateway_command import settle
from sage_infer_serve.outputs import survive_closed_outputs
from sage_infer_serve.server import listen, new_loop, run_until_signal
from sage_infer_serve.service import Service
from sage_infer_serve.watch.prometheus import exposition

from sage_llm.gateways.channel import Channel, open_channel
from sage_llm.gateways.follow import Follower, FollowingExecutor
from sage_llm.gateways.messages import Answer, Failed, Order, Question, Ready, Replicas, Uses
from sage_llm.gateways.shares import EXCHANGE_S, SharedKey, Use
from sage_llm.manager.manager import ControlPlaneManager
from sage_llm.receipts import find_receipt
from sage_llm.tasks import Tasks

__all__ = ["run"]

_METRICS_S = 3.0


def run(order: Order, owner: socket.socket) -> None:
    """Serve until SIGTERM, or until the process at the other end of ``owner`` has died."""
    os.setsid()  # Ctrl-C is for the owner, which then ends this process
    survive_closed_outputs()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    for name in ("sage_infer.serve", "sage_llm"):
        logging.getLogger(name).setLevel(logging.INFO)
    provider = None
    if order.gateway.tracing:
        from sage_infer_serve.watch.tracing import Tracing

        provider = Tracing.export_by_otlp()
    try:
        with listen(order.gateway, shared=True) as listener, Runner(loop_factory=new_loop) as runner:
            runner.run(_Gateway(order).serve(listener, owner))
    finally:
        if provider is not None:
            provider.shutdown()


class _Gateway:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._executor = FollowingExecutor()
        # The owner announces the replicas; those of joined servers are this process's own.
        models = [attrs.evolve(model, replicas=0, prefill_replicas=0) for model in order.models]
        self._manager = ControlPlaneManager(models, self._executor, order.settings)
        self._follower = Follower(self._manager.fleet, self._executor, self._send, order.drain_s)
        self._announced = asyncio.Event()
        self._ending = False
        self._owner: Channel | None = None
        self._service: Service | None = None
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._keys = {key.name: key for key in order.keys if isinstance(key, SharedKey)}
        self._tasks = Tasks()

    async def serve(self, listener: socket.socket, owner: socket.socket) -> None:
        self._owner = await open_channel(owner, self._take, self._alone)
        if self._keys:
            self._tasks.spawn(self._report_use(self._owner))
        try:
            await run_until_signal(
                self._manager,
                self._order.gateway,
                self._order.keys,
                listener,
                load=self._load,
                on_ready=lambda url: self._send(Ready()),
                on_drain=lambda open_requests: None,
                on_made=self._made,
            )
        except SageInferError as error:
            self._send(Failed(error.message))
            raise SystemExit(error.exit_code) from None
        finally:
            self._ending = True
            await self._tasks.cancel()
            await self._follower.close()
            await self._manager.close()
            self._owner.close()

    async def _load(self) -> None:
        await self._announced.wait()
        await self._manager.start()
        await self._follower.start()
        settle()

    def _made(self, service: Service) -> None:
        self._service = service
        service.all_metrics = self._all_metrics

    async def _all_metrics(self) -> bytes:
        """The metrics of all gateways, by way of the owner; those of this one if it does not answer."""
        assert self._service is not None
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send(Question(number, "metrics", {}))
        try:
            return bytes(await wait_for(answer, _METRICS_S))
        except TimeoutError:
            return exposition(self._service)
        finally:
            del self._asked[number]

    def _send(self, message: Any) -> None:
        assert self._owner is not None
        self._owner.send(message)

    async def _report_use(self, owner: Channel) -> None:
        """Tell the owner what keys have used, unless it does not read."""
        told: dict[str, Use] = {}
        while True:
            await asyncio.sleep(EXCHANGE_S)
            news = {
                name: use for name, key in self._keys.items() if (use := key.use()) != told.get(name, Use())
            }
            if news and not owner.is_congested:
                owner.send(Uses(news))
                told |= news

    def _alone(self) -> None:
        """The owner has died, and nobody restarts replicas: finish the open requests, and end."""
        if not self._ending:
            os.kill(os.getpid(), signal.SIGTERM)

    def _take(self, message: Replicas | Uses | Question | Answer) -> None:
        if isinstance(message, Uses):
            for name, use in message.uses.items():
                self._keys[name].take_over(use, is_past=message.is_past)
            return
        if isinstance(message, Answer):
            if (asked := self._asked.get(message.number)) is not None and not asked.done():
                asked.set_result(message.result)
            return
        if isinstance(message, Replicas):
            self._executor.announce(message.replicas)
            if self._announced.is_set():
                self._follower.follow()
            self._announced.set()
            return
        try:
            self._send(Answer(message.number, self._answer(message.method, **message.arguments)))
        except SageInferError as error:
            self._send(Answer(message.number, None, error.message))

    def _answer(self, method: str, **arguments: Any) -> Any:
        if method == "cluster":
            return {"pid": os.getpid(), **self._manager.cluster()}
        if method == "metrics":
            return b"" if self._service is None else exposition(self._service)
        return find_receipt(self._manager.dispatcher.placement.receipts, **arguments).to_json()
