import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.__main__ import main
from cli.commands import COMMANDS
from cli.logs import log_files, show_new
from cli.status import routes
from schemas.errors import UserError

PRESENT = [
    name for name, command in COMMANDS.items() if importlib.util.find_spec(command.target.partition(":")[0])
]


@pytest.mark.parametrize("name", PRESENT)
def test_every_command_has_help(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0, done.output
    assert "--help" in done.output


def test_help_lists_the_commands_without_importing_one() -> None:
    code = "import sys, click.testing as t; from cli.__main__ import main; print(t.CliRunner().invoke(main, ['--help']).output); print([m for m in sys.modules if m.startswith('cli.') and m not in ('cli.__main__', 'cli.commands', 'cli.lazy')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    assert all(re.search(rf"^  {name} ", done.stdout, re.MULTILINE) for name in PRESENT)


def test_a_users_mistake_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["status", "--data", str(tmp_path)])
    assert done.exit_code == 7
    assert done.output == f"tidemill: no stack runs on {tmp_path}; start one with `tidemill up`\n"


def test_down_is_fine_when_nothing_runs(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["down", "--data", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, f"No stack runs on {tmp_path}\n")


def test_logs_of_an_unknown_process_name_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "kafka.log").write_text("one\ntwo\n")
    assert [file.stem for file in log_files(tmp_path, None)] == ["kafka"]
    with pytest.raises(UserError, match="'kafak'; there are kafka"):
        log_files(tmp_path, "kafak")


def test_followed_logs_show_whole_lines_and_survive_rotation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "one.log"
    log.write_text("first\nsec")
    end = show_new(log, 0, 3)
    log.write_text("first\nsecond\n")
    end = show_new(log, end, 3)
    log.write_text("new\n")
    show_new(log, end, 3)
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["first", "second", "new"]


def test_routes_come_from_the_controllers_own_health() -> None:
    control = {"process": "control", "detail": {"detail": {"routes": {"reviews": {"champion": "1.4"}}}}}
    assert routes({"processes": [{"process": "kafka", "detail": {}}, control]}) == {
        "reviews": {"champion": "1.4"}
    }
    assert routes({"processes": []}) == {}


def test_the_doctor_reports_as_json_with_a_mend_for_each_failure() -> None:
    done = CliRunner().invoke(main, ["doctor", "--json"])
    report = json.loads(done.output)
    assert report["ok"] is (done.exit_code == 0)
    assert all(check["mend"] for check in report["checks"] if check["status"] == "FAIL")


def test_help_answers_within_a_second() -> None:
    began = time.monotonic()
    subprocess.run([sys.executable, "-P", "-m", "cli", "--help"], check=True, capture_output=True)
    assert time.monotonic() - began < 1
