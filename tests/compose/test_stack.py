"""The embedded infrastructure: real Kafka, tritonserver and ClickHouse, as a client sees them."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from compose.embedded import checks, running, stack
from compose.embedded.kafka import KafkaProbe, server_properties
from compose.embedded.parts import ROOT
from compose.embedded.ports import PortTaken, free_ports
from compose.embedded.process import NotReady
from compose.embedded.stack import Stack
from runtime.settings import load_settings
from tests.waiting import until


def test_the_infrastructure_is_ready_with_its_models_and_migrations(infrastructure: Stack) -> None:
    rows = infrastructure.status()
    assert {name: row["state"] for name, row in rows.items()} == {
        "kafka": "ready", "clickhouse": "ready", "triton": "ready", "setup": "done",
    }  # fmt: skip
    assert set(rows["triton"]["detail"]["models"]) >= {"electricity", "reviews"}


def test_everything_listens_on_loopback_only(infrastructure: Stack) -> None:
    supervisor = psutil.Process(running.description(infrastructure.data_dir)["pid"])
    listening = [
        connection.laddr.ip.removeprefix("::ffff:")
        for process in (supervisor, *supervisor.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) == {"127.0.0.1"}


@pytest.mark.parametrize("process", ["kafka", "triton", "clickhouse"])
def test_a_killed_part_comes_back_its_death_is_shown_and_its_children_die_with_it(
    infrastructure: Stack, process: str
) -> None:
    before = infrastructure.restart_count(process)
    children = psutil.Process(infrastructure.status()[process]["pid"]).children(recursive=True)
    assert children or process != "triton"  # each model is an interpreter of its own
    killed = infrastructure.kill(process)
    until(lambda: not any(is_alive(child) for child in children), "its children are dead")
    until(lambda: infrastructure.restart_count(process) == before + 1, "it was started again")
    infrastructure.wait_ready()
    row = infrastructure.status()[process]
    assert row["pid"] != killed
    assert "SIGKILL" in row["last_error"]


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it ended between the two
        return False


def test_a_second_stack_on_the_folder_is_refused_in_one_line(infrastructure: Stack) -> None:
    with pytest.raises(running.StackFailed, match="already runs on") as refused:
        running.Started(infrastructure.data_dir, ports="ephemeral", services=())
    assert refused.value.exit_code == running.AlreadyRunning.exit_code
    assert "\n" not in str(refused.value)


def test_status_over_http_serves_metrics_too(infrastructure: Stack) -> None:
    url = running.description(infrastructure.data_dir)["status_url"]
    with urllib.request.urlopen(url.replace("/status", "/metrics"), timeout=5) as answer:
        assert 'tidemill_process_ready{process="kafka"} 1.0' in answer.read().decode()


def test_settings_of_a_running_stack_survive_the_environment(infrastructure: Stack) -> None:
    assert load_settings(infrastructure.settings.environment()) == infrastructure.settings
    assert stack.writer_password_file(infrastructure.data_dir).stat().st_mode & 0o077 == 0


def test_the_kafka_probe_reports_a_broker_that_is_not_there() -> None:
    (port,) = free_ports(1)
    with pytest.raises(NotReady):
        KafkaProbe(f"127.0.0.1:{port}")()


def test_the_broker_keeps_the_rules_of_delivery() -> None:
    properties = server_properties("127.0.0.1", 1, 2, Path("log"), {})
    assert properties["auto.create.topics.enable"] == "false"
    assert properties["transaction.abort.timed.out.transaction.cleanup.interval.ms"] == "500"
    assert int(properties["message.max.bytes"]) == 8 * 1024 * 1024


def test_a_taken_port_is_named_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(stack.Ports, "__init__", ports_with_kafka(taken))
        with pytest.raises(PortTaken, match=rf"port {taken} \(kafka\) is taken by .*pid {os.getpid()}"):
            stack.choose_ports("fixed")


def ports_with_kafka(port: int) -> Callable[..., None]:
    def fill(ports: stack.Ports) -> None:
        for name, value in zip(stack.Ports.__dataclass_fields__, [port, *free_ports(5)], strict=True):
            object.__setattr__(ports, name, value)

    return fill


def test_a_full_disk_is_refused_in_one_line(tmp_path: Path) -> None:
    code = "import compose.embedded.serve as serve, sys; serve.DISK_FLOOR_BYTES = 1 << 60; sys.exit(serve.main(sys.argv[1:]))"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-c", code, "--data", str(tmp_path), "--models", str(ROOT / "triton_models"),
             "--parent-fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        theirs.close()  # so that a supervisor that said nothing is the end of the stream
        failure = json.loads(ours.recv(4096))
    assert done.returncode == failure["exit_code"] == 5
    assert "GiB free" in failure["failed"]


def test_asking_for_a_stack_that_does_not_run_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(running.NotRunning, match="tidemill up"):
        running.status(tmp_path)
    assert running.end(tmp_path) is False


def test_an_unknown_service_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(running.StackFailed, match="no service is named 'gatway'"):
        running.Started(tmp_path, ports="ephemeral", services=["gatway"])


def test_a_folder_that_a_restore_has_not_finished_is_not_begun_empty(tmp_path: Path) -> None:
    (tmp_path / "new.restoring").mkdir()
    with pytest.raises(running.UnfinishedRestore, match=r"new\.restoring: .*run `tidemill restore` again"):
        running.Started(tmp_path / "new", ports="ephemeral")
    assert not (tmp_path / "new").exists()


def test_the_doctor_finds_a_running_stack_well(infrastructure: Stack) -> None:
    infrastructure.wait_ready()
    assert checks.FAIL not in {check.status for check in checks.stack(infrastructure.data_dir)}
