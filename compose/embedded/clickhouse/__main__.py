"""``python -m compose.embedded.clickhouse``: serve one data directory until SIGTERM or SIGINT."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from aiohttp import web

from compose.embedded.clickhouse.access import Users
from compose.embedded.clickhouse.engine import DataDirectoryInUseError, Engine
from compose.embedded.clickhouse.http import Server

EXIT_DATA_IN_USE = 3
EXIT_PORT_TAKEN = 4
_FINISH_SEC = 60.0  # how long running requests may take to end after SIGTERM


def main(argv: list[str] | None = None) -> int:
    """Parse ``argv`` and serve. Prints ``listening on http://HOST:PORT`` once queries are answered."""
    parser = argparse.ArgumentParser(prog="python -m compose.embedded.clickhouse", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data directory, made if it is not there")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback only)")
    parser.add_argument("--port", type=int, default=8123, help="0 takes a free one")
    parser.add_argument("--writer-user", default="tidemill", help="the one user who may write")
    parser.add_argument(
        "--writer-password-file", type=Path, help="its password; without this nobody may write"
    )
    parser.add_argument("--max-running", type=int, default=16, help="queries that run at once")
    parser.add_argument(
        "--max-waiting", type=int, default=256, help="queries that wait before code 202 is answered"
    )
    args = parser.parse_args(argv)
    password = None
    if args.writer_password_file is not None:
        try:
            password = args.writer_password_file.read_text().strip()
        except OSError as error:
            parser.error(f"--writer-password-file {args.writer_password_file}: {error.strerror}")
        if not password:
            parser.error(
                f"--writer-password-file {args.writer_password_file}: expected a password, the file is empty"
            )
    users = Users.build(args.writer_user if password else None, password)
    try:
        engine = Engine(args.data)
    except DataDirectoryInUseError as error:
        print(error, file=sys.stderr)
        return EXIT_DATA_IN_USE
    return asyncio.run(serve(engine, users, args.host, args.port, args.max_running, args.max_waiting))


async def serve(
    engine: Engine, users: Users, host: str, port: int, max_running: int, max_waiting: int
) -> int:
    """Serve until a signal; returns the exit status. Closes ``engine``."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = Server(engine, users, max_running, max_waiting)
    runner = web.AppRunner(
        server.application(),
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,  # bodies are decoded by us, lz4 and zstd among them
        shutdown_timeout=_FINISH_SEC,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            print(f"{host}:{port}: cannot listen there: {error.strerror}", file=sys.stderr)
            return EXIT_PORT_TAKEN
        bound_host, bound_port = runner.addresses[0][:2]
        print(f"listening on http://{bound_host}:{bound_port}", flush=True)
        await stopped.wait()
        await site.stop()
        server.kill_reads()
        return 0
    finally:
        await runner.cleanup()
        await server.close()


if __name__ == "__main__":
    sys.exit(main())
