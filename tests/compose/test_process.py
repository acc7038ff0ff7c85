import pytest

from compose.embedded.process import Process, Start, last_error, levels, next_backoff


def process(name: str, *after: str) -> Process:
    return Process(name, lambda: Start(["true"]), after=after)


def test_processes_start_after_what_they_depend_on() -> None:
    found = levels(
        [
            process("gateway", "setup", "triton"),
            process("kafka"),
            process("setup", "kafka"),
            process("triton"),
        ]
    )
    assert [[one.name for one in level] for level in found] == [["kafka", "triton"], ["setup"], ["gateway"]]


def test_a_dependency_that_is_not_part_of_the_stack_is_not_waited_for() -> None:
    assert len(levels([process("gateway", "setup")])) == 1


def test_processes_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="a, b"):
        levels([process("a", "b"), process("b", "a")])


def test_backoff_doubles_to_its_limit_and_a_long_run_resets_it() -> None:
    delays = [0.0]
    for _ in range(8):
        delays.append(next_backoff(delays[-1], ran_sec=0.1))
    assert delays[1:] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert next_backoff(10.0, ran_sec=31) == 0.2


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", ""),
        ("starting\n", "starting"),
        ("Traceback (most recent call last):\n  File x\nValueError: no\nbye\n", "ValueError: no"),
        (
            '{"level": "error", "message": "crashed", "traceback": "File x\\nKeyError: 1"}\n',
            "crashed: KeyError: 1",
        ),
        ('{"level": "error", "message": "no broker"}\n{"level": "info", "message": "bye"}\n', "no broker"),
    ],
)
def test_the_last_error_is_the_line_that_says_most(log: str, expected: str) -> None:
    assert last_error(log) == expected
