"""Ports on loopback: which are free, and who has one that is not."""

from __future__ import annotations

import random
import socket

from schemas.errors import UserError

HOST = "127.0.0.1"


class PortTaken(UserError):
    exit_code = 4


def free_ports(count: int) -> list[int]:
    """Ports free at this moment, below the range from which the kernel takes those of outgoing connections (32768 and up),

    so that no client's connection can take one between this check and the server's bind.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(range(12000, 32000), 2000):
        if is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise PortTaken("no free ports between 12000 and 32000")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # a closed connection's TIME_WAIT does not count
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def owner(port: int) -> str:
    import psutil

    for connection in psutil.net_connections("tcp"):
        if (
            connection.laddr
            and connection.laddr.port == port
            and connection.status == psutil.CONN_LISTEN
            and connection.pid
        ):
            return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another user's process"
