"""The worker: takes runs of the pool, and gives them back in order when it is told to stop.

Prefect's own process worker kills its runs when it ends, and they stay Running for ever. This one takes no more work,
asks its runs to end, waits for them, and schedules those that are not done again: another worker, or this one after
its restart, goes on with the same run where it stopped.
"""

from __future__ import annotations

import signal
import socket
import tempfile
import time
from pathlib import Path
from uuid import UUID

import anyio
import anyio.abc
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.exceptions import ObjectNotFound
from prefect.runner._control_channel import ControlSignalStatus
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.runner._process_manager import ProcessHandle
from prefect.runner._workspace_starter import WorkspaceResolvingEngineCommandStarter
from prefect.settings import PREFECT_API_URL, PREFECT_WORKER_HEARTBEAT_SECONDS
from prefect.states import AwaitingRetry, Cancelled
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from deployments.console import say
from deployments.work_pool import POOL, TELL_SECONDS
from tasks.domain.errors import InputError

# A run that is still importing can't be told anything yet.
_CONNECT_SECONDS = 20.0
_LOOK_SECONDS = 0.2
_LEFT_AS_THEY_ARE = frozenset(
    {StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.PAUSED, StateType.SCHEDULED}
)


def run_worker(*, name: str | None, limit: int, stop_seconds: float) -> None:
    """Serve the pool until SIGTERM or SIGINT, then end in order: within ``stop_seconds``, or at the second signal.

    The Prefect server is the one that ``PREFECT_API_URL`` names; the pool must be there (``cryptique-rag bootstrap``).
    Runs that have not ended by then are killed, and handed back all the same.
    """
    if not PREFECT_API_URL.value():
        raise InputError("PREFECT_API_URL is not set: a worker needs the address of its Prefect server")
    name = name or socket.gethostname()
    say(f"worker {name}: up to {limit} runs at once")
    anyio.run(_serve, name, limit, stop_seconds)


async def _serve(name: str, limit: int, stop_seconds: float) -> None:
    worker = PipelineWorker(
        work_pool_name=POOL,
        name=name,
        limit=limit,
        create_pool_if_not_found=False,
        heartbeat_interval_seconds=int(PREFECT_WORKER_HEARTBEAT_SECONDS.value()),
    )

    async def serve() -> None:
        await worker.start(with_healthcheck=True)
        running.cancel_scope.cancel()

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as running:
            running.start_soon(serve)
            await anext(signals)
            async with anyio.create_task_group() as stopping:
                hurry = anyio.Event()

                async def listen() -> None:
                    await anext(signals)
                    hurry.set()

                stopping.start_soon(listen)
                await worker.drain(stop_seconds, hurry)
                stopping.cancel_scope.cancel()
            running.cancel_scope.cancel()


class PipelineWorker(ProcessWorker):
    """Prefect's process worker with an end in order."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._draining = False
        self._attempts: dict[UUID, FlowRunExecutorContext] = {}
        self._asked: dict[UUID, float] = {}
        self._signalled: set[UUID] = set()

    @classmethod
    def __dispatch_key__(cls) -> str | None:
        """Leave the name ``process`` to Prefect's own worker, which everything else looks up."""
        return "cryptique-process"

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Take what is due, or nothing any more once the worker is to end."""
        return [] if self._draining else await super().get_and_submit_flow_runs()

    async def _submit_scheduled_flow_runs(self, flow_run_response: list[WorkerFlowRunResponse]) -> list[FlowRun]:
        """Leave a run that is due again while its last process is still ending: Prefect's worker would end itself."""
        ending = set(self.limiter.statistics().borrowers)
        due = [entry for entry in flow_run_response if entry.flow_run.id not in ending]
        return await super()._submit_scheduled_flow_runs(due)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Run it as a process, as Prefect does, and keep hold of the channel over which it can be told to end."""
        told = anyio.TASK_STATUS_IGNORED if task_status is None else task_status
        with tempfile.TemporaryDirectory(prefix="cryptique-run-") as folder:
            async with FlowRunExecutorContext() as context:
                starter = WorkspaceResolvingEngineCommandStarter(
                    workspace_root=Path(folder).resolve(),
                    stream_output=configuration.stream_output,
                    control_channel=context.control_channel,
                    source_cwd=Path(folder).resolve(),
                    environment=configuration.env,
                )
                context.call_after_exit(starter.close)
                executor = context.create_executor(
                    flow_run, starter, propose_submitting=False, hook_runner=starter.hook_runner
                )
                ended: list[FlowRunExecutionResult | None] = []

                async def execute(*, task_status: anyio.abc.TaskStatus[ProcessHandle]) -> None:
                    ended.append(await executor.submit(task_status=task_status))

                self._attempts[flow_run.id] = context
                try:
                    async with anyio.create_task_group() as group:
                        handle = await group.start(execute)
                        if handle.pid is None:
                            raise RuntimeError("the run's process has no id")
                        told.started(handle.pid)
                finally:
                    del self._attempts[flow_run.id]
                if flow_run.id in self._signalled:
                    await self._hand_back(flow_run)
        result = ended[0] if ended else None
        if result is None or result.status_code is None:
            raise RuntimeError("the run's process could not be started")
        # Handed back, it is not this worker's to call crashed.
        status = 0 if flow_run.id in self._signalled else result.status_code
        return ProcessWorkerResult(status_code=status, identifier=str(result.handle.pid))

    async def drain(self, seconds: float, hurry: anyio.Event) -> None:
        """Take no more work, ask all runs to end and wait for them; kill them after ``seconds`` or at ``hurry``."""
        self._draining = True
        deadline = time.monotonic() + seconds
        if waited_for := self.limiter.borrowed_tokens:
            self._logger.info("stopping: waiting up to %.0f seconds for %d runs to end", seconds, waited_for)
        while self.limiter.borrowed_tokens:
            late = hurry.is_set() or time.monotonic() > deadline
            if time.monotonic() > deadline + TELL_SECONDS:
                self._logger.error("%d runs could not be handed back in time", self.limiter.borrowed_tokens)
                return
            for flow_run_id, context in list(self._attempts.items()):
                if (handle := context.process_manager.get(flow_run_id)) is not None:
                    await self._ask_to_end(flow_run_id, context, handle, late=late)
            await anyio.sleep(_LOOK_SECONDS)

    async def _ask_to_end(
        self, flow_run_id: UUID, context: FlowRunExecutorContext, handle: ProcessHandle, *, late: bool
    ) -> None:
        """Tell the engine that somebody else goes on with the run, then send SIGTERM; once, and SIGKILL when late."""
        if flow_run_id not in self._signalled:
            asked = self._asked.setdefault(flow_run_id, time.monotonic())
            # Without this word the engine takes SIGTERM for a crash, and tells people of it.
            status = await context.control_channel.signal(flow_run_id, "reschedule")
            if status is ControlSignalStatus.ALREADY_CONCLUDED:
                return
            patient = not late and time.monotonic() - asked < _CONNECT_SECONDS
            if status is ControlSignalStatus.NOT_ACKNOWLEDGED and patient:
                return
            self._signalled.add(flow_run_id)
            if not late:
                self._kill(handle, hard=False)
        if late:
            self._kill(handle, hard=True)

    def _kill(self, handle: ProcessHandle, *, hard: bool) -> None:
        try:
            if hard:
                handle.hard_kill()
            else:
                handle.graceful_kill()
        except ProcessLookupError:
            return

    async def _hand_back(self, flow_run: FlowRun) -> None:
        """Schedule a run that was asked to end for whoever takes it next, unless it has come to an end of its own."""
        try:
            states = sorted(await self.client.read_flow_run_states(flow_run.id), key=lambda state: state.timestamp)
            wanted = next_state(states)
            if wanted is not None:
                await self.client.set_flow_run_state(flow_run.id, wanted, force=True)
        except ObjectNotFound:
            return  # somebody deleted it
        except Exception:
            self._logger.exception("run %s could not be handed back: set it to Scheduled by hand", flow_run.id)
            return
        self._logger.info("run %s: %s", flow_run.name, "left as it ended" if wanted is None else wanted.name)


def next_state(states: list[State]) -> State | None:
    """Return the state for a run whose process was asked to end, or None if it ended by itself; oldest state first.

    A run that was cancelled stays so, also one that the server cancelled because another is at its work. One that
    paused waits for a person. Crashed is what the server says when the process had to be killed.
    """
    last = states[-1].type if states else None
    began = max((at for at, state in enumerate(states) if state.type is StateType.RUNNING), default=0)
    if any(state.type is StateType.CANCELLING for state in states[began:]):
        return None if last is StateType.CANCELLED else Cancelled(message="ended with its worker while being cancelled")
    if last in _LEFT_AS_THEY_ARE:
        return None
    return AwaitingRetry(message="handed back by a worker that is stopped: the next worker goes on with it")
