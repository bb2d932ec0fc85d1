"""The composition root: what the server is made of, in which order it starts and stops.

The only file that knows all parts. Start: data directory, address, database, engine, log store,
retention, spawner, rpc; a refusal on the way undoes what was begun. Stop is the reverse but for one thing:
while agents are being ended the rpc server still serves them, so that they can hand back their
work. A part that dies by itself brings all of it down with a message: a server that limps
would keep its callers waiting.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog
from kapell._version import __version__

from kapell_server.clock import Clock, SystemClock
from kapell_server.config import Config
from kapell_server.data_dir import DataDirectory, StartRefusedError, explain
from kapell_server.domain.access import Keyring
from kapell_server.domain.errors import KapellError
from kapell_server.domain.settings import Settings
from kapell_server.domain.tasks.artifact import MIB, ArtifactLimits
from kapell_server.engine.engine import Engine
from kapell_server.engine.retention import Retention
from kapell_server.gateway.server import HttpAddressUnusableError, HttpServer
from kapell_server.rpc.admin import AdminServicer, ServerFacts
from kapell_server.rpc.agents import AgentServicer
from kapell_server.rpc.approvals import ApprovalServicer
from kapell_server.rpc.artifacts import ArtifactServicer
from kapell_server.rpc.auth import Authenticator
from kapell_server.rpc.budgets import AlertServicer, BudgetServicer
from kapell_server.rpc.calls import OpenCalls
from kapell_server.rpc.directives import Directives
from kapell_server.rpc.events import EventServicer
from kapell_server.rpc.fence import Fence
from kapell_server.rpc.limits import CallLimits
from kapell_server.rpc.locks import LockServicer
from kapell_server.rpc.logins import FailedLogins
from kapell_server.rpc.pipeline import Pipeline
from kapell_server.rpc.queues import QueueServicer
from kapell_server.rpc.refusals import Refusals
from kapell_server.rpc.schedules import ScheduleServicer
from kapell_server.rpc.secrets import SecretServicer
from kapell_server.rpc.server import AddressUnusableError, RpcServer, is_loopback
from kapell_server.rpc.task_logs import TaskLogs
from kapell_server.rpc.tasks import TaskServicer
from kapell_server.rpc.templates import TemplateServicer
from kapell_server.rpc.tls import Tls, TlsFiles, TlsUnusableError
from kapell_server.rpc.tokens import AuditServicer, TokenServicer, keep_uses, write_uses
from kapell_server.rpc.usage import PriceServicer, UsageServicer
from kapell_server.rpc.webhooks import WebhookServicer
from kapell_server.rpc.workers import WorkerServicer
from kapell_server.shipped_prices import shipped_prices
from kapell_server.shipped_templates import install_templates
from kapell_server.spawner.spawner import Spawner
from kapell_server.store.artifacts import ArtifactStore
from kapell_server.store.database import Database, StorageError, open_database
from kapell_server.store.logs import MAX_BYTES, LogStore
from kapell_server.store.migrate import begin_new_log
from kapell_server.store.webhook_deliveries import WebhookDeliveries
from kapell_server.supervise import Supervisor
from kapell_server.telemetry import Telemetry
from kapell_server.vault import Vault
from kapell_server.watch.follow import Watches
from kapell_server.webhooks.service import Webhooks

if TYPE_CHECKING:
    from starlette.applications import Starlette

_log = structlog.get_logger(__name__)

# How long calls that were accepted may take to end when the server stops, seconds.
STOP_GRACE = 5.0
# How often admin.token is looked at, seconds.
TOKEN_LOOK = 1.0


class App:
    """One server in this process. `start` once, then `stop` once; `failed` tells of a part that died."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.telemetry = Telemetry()
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.address = ""
        self.http_address = ""
        self._http = HttpServer()
        self.local_address = ""
        self.admin_token = ""
        self.directory = DataDirectory(config.data_dir)
        self.supervisor = Supervisor(on_crash=self._crashed)
        self.refusals = Refusals(time.time_ns)
        self._undo = AsyncExitStack()
        self._terminate_agents = False
        self._serves = False
        self.engine: Engine
        self.vault: Vault
        self.artifacts: ArtifactStore
        self.rpc: RpcServer

    async def start(self) -> None:
        """Starts everything; serves when it returns. Raises StartRefusedError, having undone its part."""
        try:
            await self._start()
        except BaseException as error:
            await self._undo.aclose()
            if (refusal := _as_refusal(error, self.config)) is not None:
                raise refusal from error
            raise

    async def stop(self, *, terminate_agents: bool) -> None:
        """Stops everything. With `terminate_agents` the spawned agents are ended first, else they live on."""
        self._terminate_agents = terminate_agents
        await self._undo.aclose()
        calls = self.telemetry.summary()
        _log.info(
            "stopped",
            calls=sum(method["calls"] for method in calls.values()),
            errors=sum(method["errors"] for method in calls.values()),
        )

    async def _start(self) -> None:
        config, undo = self.config, self._undo
        _refuse_exposure(config)
        self.directory.acquire()
        undo.callback(self.directory.release)
        keyring, self.vault, self.admin_token = self.directory.keys()

        undo.push_async_callback(self.supervisor.stop)
        calls = OpenCalls()
        authenticator = self._authenticator(keyring)
        pipeline = self._pipeline(keyring, authenticator, calls)
        self.rpc = rpc = RpcServer(pipeline, calls, calls_of_connection=config.max_calls_of_connection)
        undo.push_async_callback(rpc.stop, STOP_GRACE)
        self._bind(rpc)

        database = await open_database(config.database_url, config.data_dir)
        undo.push_async_callback(database.close)
        if not config.database_url:
            await self._settle(database)
        clock = SystemClock()
        engine = self.engine = Engine(
            database,
            keyring=keyring,
            clock=clock,
            settings=_settings(config),
            supervisor=self.supervisor,
            prices=shipped_prices(),
            vault=self.vault,
            profiles=config.profiles.values(),
        )
        await engine.start()
        undo.push_async_callback(engine.stop)
        if not config.no_templates:
            await install_templates(engine)
        logs = LogStore(self.directory.logs)
        undo.callback(logs.close)
        artifacts = self.artifacts = await self._open_artifacts(database, clock)
        self._begin_retention(engine, database, logs, artifacts)
        webhooks = await self._begin_webhooks(engine, database, keyring)
        undo.push_async_callback(rpc.stop, STOP_GRACE)
        undo.callback(engine.ring.close)

        spawner = Spawner(
            engine,
            engine.reads,
            data_dir=config.data_dir,
            server_address=lambda: self.local_address,
            keyring=keyring,
        )
        await spawner.start()
        undo.push_async_callback(self._stop_spawner, spawner)
        self.supervisor.spawn(calls.watch(), name="open calls")
        self._begin_keeping_tokens(keyring, authenticator, engine)
        self._serves = True
        servicers = self._servicers(engine, logs, artifacts, spawner, database)
        servicers["WebhookService"] = webhooks
        servicers["TokenService"] = TokenServicer(
            engine, engine.reads, keyring=keyring, authenticator=authenticator, clock=clock
        )
        await rpc.start(servicers)
        undo.push_async_callback(rpc.drain)
        if self.http_address:
            self._http.start(self.supervisor, lambda: self._http_application(rpc))
            undo.push_async_callback(self._http.stop)
        self.directory.announce(grpc_address=self.local_address, http_address=self.http_address, log_id=engine.log_id)
        undo.callback(self.directory.withdraw)

    def _http_application(self, rpc: RpcServer) -> Starlette:
        # Imported when gRPC serves already: starting must not wait for the libraries of HTTP.
        from kapell_server.gateway.application import application

        return application(
            rpc.unary_calls,
            rpc.welcomes,
            is_ready=lambda: "the server is stopping" if rpc.is_draining else "",
            otlp_usage=self.config.otlp_usage,
        )

    async def _open_artifacts(self, database: Database, clock: Clock) -> ArtifactStore:
        """The files that tasks keep, and their housekeeping."""
        artifacts = ArtifactStore(
            database,
            self.directory.artifacts,
            clock=clock,
            limits=_artifact_limits(self.config),
            supervisor=self.supervisor,
        )
        self._undo.callback(artifacts.close)
        await artifacts.open()
        keeper = self.supervisor.spawn(artifacts.keep_house(), name="housekeeping of artifacts")
        self._undo.callback(keeper.cancel)
        return artifacts

    def _authenticator(self, keyring: Keyring) -> Authenticator:
        """Asks the engine only while calls are served, and then there is one."""
        return Authenticator(
            keyring,
            required=not self.config.no_auth,
            find=lambda token_id: self.engine.find_token(token_id),
            version=lambda: self.engine.tokens_version if self._serves else 0,
            holder=lambda lease_id: self.engine.holder(lease_id),
        )

    def _pipeline(self, keyring: Keyring, authenticator: Authenticator, calls: OpenCalls) -> Pipeline:
        config = self.config
        return Pipeline(
            authenticator,
            calls,
            self.telemetry,
            lives=lambda caller: self.engine.lives(caller),
            agents_fence=Fence(lambda: self.engine, lambda: self.artifacts, keyring),
            note_refusal=self.refusals.note,
            logins=FailedLogins(burst=config.max_failed_logins),
            limits=CallLimits(
                at_once=config.max_calls_at_once,
                a_second=config.max_calls_a_second,
                watches=config.max_watches_of_one,
                polls=config.max_polls_of_one,
            ),
        )

    def _begin_keeping_tokens(self, keyring: Keyring, authenticator: Authenticator, engine: Engine) -> None:
        """From now on the owner's token may change, and is written down when others were used."""
        self.supervisor.spawn(self._watch_admin_token(keyring), name="owner's token")
        self.supervisor.spawn(keep_uses(authenticator, engine.reads), name="uses of tokens")
        self.supervisor.spawn(self.refusals.keep(engine), name="refused attempts")
        self._undo.push_async_callback(self.refusals.write, engine)
        self._undo.push_async_callback(write_uses, authenticator, engine.reads)

    def _bind(self, rpc: RpcServer) -> None:
        """Takes the addresses; with TLS also a second one for gRPC in plain text, for what runs on this machine.

        Hosts of agents have neither the certificates nor a way to be told of new ones, and outlive the server:
        theirs is an address that stays.
        """
        config = self.config
        if config.http_address:
            self.http_address = self._http.bind(config.http_address)
            self._undo.push_async_callback(self._http.stop)
        if config.tls_cert is None or config.tls_key is None:
            self.address = self.local_address = rpc.bind(config.grpc_address)
            return
        files = TlsFiles(cert=config.tls_cert, key=config.tls_key, client_ca=config.tls_client_ca)
        self.address = rpc.bind(config.grpc_address, Tls(files))
        self.local_address = rpc.bind(config.local_address or self.directory.local_address())
        self._undo.callback(self.directory.remove_socket)

    def _begin_retention(self, engine: Engine, database: Database, logs: LogStore, artifacts: ArtifactStore) -> None:
        """Lets finished tasks and old events go from now on; with a task goes what it has outside of its rows."""

        async def delete_files(task_id: str) -> None:
            await logs.delete(task_id)
            await artifacts.delete_task(task_id)

        retention = Retention(
            engine, database, settings=_settings(self.config), clock=SystemClock(), delete_files=delete_files
        )
        retention.start(self.supervisor)
        self._undo.push_async_callback(retention.stop)

    async def _begin_webhooks(self, engine: Engine, database: Database, keyring: Keyring) -> WebhookServicer:
        """Sends events from now on."""
        deliveries = WebhookDeliveries(database)
        webhooks = Webhooks(engine, deliveries, keyring=keyring, clock=SystemClock(), supervisor=self.supervisor)
        await webhooks.start()
        self._undo.push_async_callback(webhooks.stop)
        return WebhookServicer(engine, engine.reads, webhooks, deliveries)

    async def _settle(self, database: Database) -> None:
        """Gives a copied data directory a log of its own, before anything acts on it.

        Under the log_id of the original it would take the original's hosts for its own, and kill them.
        The new place comes last: after a crash in between, the next start begins a new log again.
        """
        original = self.directory.copied_from()
        if original is not None:
            # It came with the copy, and says where the original is.
            self.directory.withdraw()
            log_id = await database.write(begin_new_log)
            _log.warning("the data directory is a copy, it begins a new log", copied_from=str(original), log_id=log_id)
        self.directory.settle()

    async def _watch_admin_token(self, keyring: Keyring) -> None:
        """Takes another content of admin.token for the owner's token, within a second or two."""
        while True:
            await asyncio.sleep(TOKEN_LOOK)
            token = self.directory.changed_admin_token()
            if token is not None:
                keyring.replace_admin(token)
                self.admin_token = token
                _log.info("the owner's token was replaced", file=str(self.directory.admin_token_file))

    async def _stop_spawner(self, spawner: Spawner) -> None:
        await spawner.stop(terminate_agents=self._terminate_agents)

    def _servicers(
        self, engine: Engine, logs: LogStore, artifacts: ArtifactStore, spawner: Spawner, database: Database
    ) -> dict[str, object]:
        """One servicer a service, by the service's name."""
        config, reads = self.config, engine.reads
        watches = Watches(engine.ring, reads, log_id=engine.log_id, limit=config.max_watches)
        facts = ServerFacts(
            version=__version__,
            database=database.kind,
            max_watches=config.max_watches,
            max_agents=config.max_agents,
            max_attempt_log_bytes=MAX_BYTES,
        )
        return {
            "TaskService": TaskServicer(
                engine,
                reads,
                watches=watches,
                logs=logs,
                artifacts=artifacts,
                task_logs=TaskLogs(reads, logs, engine.ring, self.supervisor),
            ),
            "AgentService": AgentServicer(engine, reads, watches=watches, spawner=spawner, profiles=config.profiles),
            "TemplateService": TemplateServicer(engine, reads),
            "QueueService": QueueServicer(engine, reads),
            "LockService": LockServicer(engine, watches),
            "SecretService": SecretServicer(engine, reads, self.vault),
            "ScheduleService": ScheduleServicer(engine, reads, SystemClock()),
            "BudgetService": BudgetServicer(engine, reads),
            "AlertService": AlertServicer(engine, reads),
            "WorkerService": WorkerServicer(
                engine, logs=logs, directives=Directives(engine.ring, reads, self.supervisor)
            ),
            "UsageService": UsageServicer(engine, reads, watches=watches, clock=SystemClock()),
            "PriceService": PriceServicer(engine),
            "ArtifactService": ArtifactServicer(engine, reads, artifacts),
            "ApprovalService": ApprovalServicer(engine, reads, watches=watches),
            "EventService": EventServicer(reads, watches=watches),
            "AuditService": AuditServicer(reads),
            "AdminService": AdminServicer(engine, watches=watches, facts=facts),
        }

    def _crashed(self, name: str, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_result(f"the part `{name}` of the server died: {error}")


def _settings(config: Config) -> Settings:
    return Settings(
        lease_duration=config.lease_duration,
        heartbeat_interval=config.heartbeat_interval,
        max_agents=config.max_agents,
        keep_tasks_for=config.keep_tasks_for,
        keep_tasks=config.keep_tasks,
        keep_events_for=config.keep_events_for,
        keep_events=config.keep_events,
    )


def _artifact_limits(config: Config) -> ArtifactLimits:
    return ArtifactLimits(
        artifact_bytes=config.max_artifact_mib * MIB,
        task_bytes=config.max_task_artifacts_mib * MIB,
        total_bytes=config.max_artifacts_mib * MIB,
        max_age=config.max_artifact_age,
    )


def _refuse_exposure(config: Config) -> None:
    """Without TLS, tokens must not cross a network unless somebody said that they may."""
    if config.local_address and not is_loopback(config.local_address):
        raise StartRefusedError(
            f"local_address is in plain text, but {config.local_address} can be reached from other machines."
            " Give one of this machine, such as 127.0.0.1:50052 or unix:/run/kapell/local.sock."
        )
    if config.http_address and not is_loopback(config.http_address) and not config.insecure_bind:
        raise StartRefusedError(
            f"HTTP on {config.http_address} can be reached from other machines, and tokens would cross the network"
            " unencrypted. Give --http-address 127.0.0.1:4110 and a proxy that encrypts, or add --insecure-bind where"
            " something else encrypts."
        )
    if is_loopback(config.grpc_address) and (not config.http_address or is_loopback(config.http_address)):
        return
    if config.no_auth:
        raise StartRefusedError(
            f"--no-auth and {config.grpc_address} together would let anyone on the network run commands here."
            " Leave out --no-auth, or listen on 127.0.0.1."
        )
    if not is_loopback(config.grpc_address) and config.tls_cert is None and not config.insecure_bind:
        raise StartRefusedError(
            f"{config.grpc_address} can be reached from other machines, and tokens would cross the network"
            " unencrypted. Give --tls-cert and --tls-key, listen on 127.0.0.1, or add --insecure-bind where something"
            " else encrypts."
        )


def _as_refusal(error: BaseException, config: Config) -> StartRefusedError | None:
    """The failures of a start that the user can mend; None for a defect of ours."""
    match error:
        case StartRefusedError():
            return error
        case StorageError() | AddressUnusableError() | HttpAddressUnusableError() | TlsUnusableError():
            text = str(error)
            return StartRefusedError(text[:1].upper() + text[1:])
        case KapellError():
            return StartRefusedError(error.message)
        case OSError():
            return StartRefusedError(explain(error, config.data_dir))
        case _:
            return None
