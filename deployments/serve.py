"""``serve`` and ``health``: the HTTP service with its watch, and the same look from a shell."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.console import FAILED, JsonOption, print_json, quiet_prefect, reported, say

if TYPE_CHECKING:
    from deployments.settings import Settings

#: Requests under way may end; then the process does.
_STOP_SECONDS = 20
#: Of `readiness`: nothing is broken, and not all could be told.
UNPROVED = 3


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on, instead of CRYPTIQUE_HTTP_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Port, instead of CRYPTIQUE_HTTP_PORT.")] = None,
    processes: Annotated[int, typer.Option(min=1, max=32, help="Processes that answer.")] = 1,
) -> None:
    """Answer over HTTP: health, metrics, the monitoring page; and watch all parts, and tell what is wrong.

    One process of this machine watches, however many there are; another goes on when it ends. Runs until it is stopped.
    """
    with reported(), quiet_prefect(), ExitStack() as stack:
        import uvicorn

        from deployments.admin_token import admin_token_path, find_or_make_admin_token
        from deployments.embedded import running_prefect_server
        from deployments.local_services import running_services
        from deployments.register_blocks import protect_home
        from deployments.settings import load_settings

        settings = load_settings()
        protect_home(settings.home)
        # A Prefect server is looked at where there is one; serving needs none.
        running = stack.enter_context(running_services(settings, prefect=False))
        url = settings.prefect_api_url or running_prefect_server(settings.home)
        found: dict[str, Any] = {"PREFECT_API_URL": url, "CRYPTIQUE_HOME": str(settings.home)}
        if running.mongo_uri is not None:
            found["CRYPTIQUE_SOURCE_URI"] = running.mongo_uri
        if settings.cryptique_admin_token is None and not settings.is_production:
            found["CRYPTIQUE_ADMIN_TOKEN"] = find_or_make_admin_token(settings.home)
            say(f"the password of admin lies in {admin_token_path(settings.home)}")
        os.environ.update({name: value for name, value in found.items() if value is not None})
        host, port = host or settings.cryptique_http_host, port or settings.cryptique_http_port
        say(f"monitoring page: http://{host}:{port}/admin/monitoring")
        uvicorn.run(
            "deployments.http.serving:create",
            factory=True,
            host=host,
            port=port,
            workers=processes,
            # The guard knows whom to believe about who asks.
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )


def health(as_json: JsonOption = False) -> None:
    """Look at every part once and print what each probe found. Exit code 1 if one fails or a limit is passed.

    Needs no service and no Prefect server; writes nothing and tells nobody.
    """
    with reported(), quiet_prefect():
        from deployments.settings import load_settings

        settings = load_settings()
        found = _look(settings)
        if as_json:
            print_json(found)
        else:
            for one in found["probes"]:
                print(f"{one['probe']:<10} {one['verdict']:<8} {one['says']}")
            for one in found["passed"]:
                print(f"{one['severity']}: {one['title']}. {one['says']}")
        if not found["well"]:
            raise typer.Exit(FAILED)


def readiness(
    send: Annotated[bool, typer.Option("--send", help="Post a test message to the webhook of alerts.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every promise that a machine can check here, and print what is proved, when, and what is not.

    Exit code 0: all is proved. 1: a promise is broken. 3: some could not be told.
    """
    with reported(), quiet_prefect():
        from deployments.embedded import running_mongod, running_prefect_server
        from deployments.http.serving import prefect_of
        from deployments.readiness import prove
        from deployments.register_blocks import make_blocks
        from deployments.settings import inspect_settings

        settings, _ = inspect_settings()
        blocks = make_blocks(settings, embedded_uri=running_mongod(settings.home))
        prefect = prefect_of(settings.prefect_api_url or running_prefect_server(settings.home))
        proofs = prove(settings, blocks, prefect, send=send)
        if as_json:
            print_json([one.to_json() for one in proofs])
        else:
            for one in proofs:
                mark = {True: "proved", False: "BROKEN", None: "unknown"}[one.kept]
                print(f"{mark:<8} {one.promise:<46} {one.at:%Y-%m-%d %H:%M} UTC  {one.says}")
        if any(one.kept is False for one in proofs):
            raise typer.Exit(FAILED)
        if any(one.kept is None for one in proofs):
            raise typer.Exit(UNPROVED)


def _look(settings: Settings) -> dict[str, Any]:
    from deployments.embedded import running_mongod, running_prefect_server
    from deployments.http.serving import prefect_of
    from deployments.register_blocks import make_blocks
    from deployments.watch import probe_parts
    from tasks.domain.alerts import judge
    from tasks.probe import take_readings

    now = datetime.now(UTC)
    blocks = make_blocks(settings, embedded_uri=running_mongod(settings.home))
    prefect = prefect_of(settings.prefect_api_url or running_prefect_server(settings.home))
    readings = take_readings(probe_parts(blocks, blocks.monitor.open_book(), prefect), now=now)
    passed = [one for one in judge(readings, settings.limits, now=now) if one.passed]
    return {
        "well": not passed and all(one.verdict != "failed" for one in readings),
        "probes": [asdict(one) for one in readings],
        "passed": [asdict(one) for one in passed],
    }
