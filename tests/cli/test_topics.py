"""`microflow topics` on the local log: a plan, what it does, and what it leaves alone."""

from __future__ import annotations

import pytest

from tests.cli.projects import Project

READS_TWO = """
from microflow import Event, on

class Left(Event):
    order_id: str

class Right(Event):
    order_id: str

@on("Left")
async def note_left(event: Left) -> None: ...

@on("Right")
async def note_right(event: Right) -> None: ...
"""


def actions(project: Project, *arguments: str) -> dict[str, str]:
    """What the plan says of each topic."""
    lines = project.json_lines("topics", "plan", "payments.py", *arguments)
    return {line["topic"]: line["action"] for line in lines if "topic" in line}


def test_the_plan_names_what_a_service_reads_writes_and_gives_up(project: Project) -> None:
    ended = project.run("topics", "plan", "payments.py", "--log", "local:log.db")

    assert ended.stdout == (
        "topics on local log log.db\n"
        "  + OrderAccepted    create · 6 partitions · ? → payments\n"
        "  + PaymentReceived  create · 6 partitions · payments → nobody here\n"
        "  + dlq-payments     create · 6 partitions · dead letters of payments\n"
        "3 to create, 0 to change. Do it:  microflow topics apply payments.py --kafka local:log.db\n"
    )


def test_what_is_applied_is_there_and_nothing_is_left_to_do(project: Project) -> None:
    assert project.run("topics", "plan", "payments.py", "--check").returncode == 1

    applied = project.json_lines("topics", "apply", "payments.py", "--partitions", "3")

    assert [line["done"] for line in applied] == [True, True, True, 3]
    assert set(actions(project).values()) == {"keep"}
    assert project.run("topics", "plan", "payments.py", "--check").returncode == 0
    service = project.start("run", "payments.py")
    service.until_ready()
    assert service.lines()[0]["of_partitions"] == 3


def test_the_project_s_file_says_how_topics_are_made(project: Project) -> None:
    project.write("microflow.toml", "[topic]\npartitions = 4\n[topic.OrderAccepted]\npartitions = 8\n")

    project.json_lines("topics", "apply", "payments.py")

    lines = project.json_lines("topics", "plan", "payments.py")
    assert {line["topic"]: line["before"]["partitions"] for line in lines if "topic" in line} == {
        "OrderAccepted": 8,
        "PaymentReceived": 4,
        "dlq-payments": 4,
    }


def test_a_topic_grows_only_when_it_is_confirmed(project: Project) -> None:
    project.json_lines("topics", "apply", "payments.py", "--partitions", "3")
    wish = ["topics", "apply", "payments.py", "--partitions", "OrderAccepted=5"]

    asked = project.run(*wish)
    before = actions(project, "--partitions", "OrderAccepted=5")
    confirmed = project.run(*wish, "--yes")

    assert asked.returncode == 1
    assert "Not done, because it cannot be undone." in asked.stdout
    assert f"microflow {' '.join(wish)} --yes" in asked.stdout
    assert before["OrderAccepted"] == "change"
    assert confirmed.returncode == 0
    assert confirmed.stdout.endswith(
        "Whoever wrote to OrderAccepted before uses 3 of its partitions until:  microflow topics switch OrderAccepted "
        "payments.py\n"
    )
    assert actions(project, "--partitions", "OrderAccepted=5")["OrderAccepted"] == "keep"


def test_topics_that_one_service_reads_are_kept_alike_and_every_verb_says_the_same_where_they_are_not(
    project: Project,
) -> None:
    project.write("shop.py", READS_TWO)
    apply = ["topics", "apply", "shop.py"]
    alike = "To make those alike:  microflow topics apply shop.py --partitions Right=6 --yes\n"

    made = project.run(*apply, "--partitions", "Left=3")
    grown = project.run(*apply, "--partitions", "Left=6", "--yes")
    planned = project.run("topics", "plan", "shop.py")
    examined = project.run("doctor", "shop.py", environment={"OTEL_TRACES_EXPORTER": "none"})
    mended = project.run(*alike.removeprefix("To make those alike:  microflow ").split())

    assert "as many partitions as Left, which shop reads too\n" in made.stdout
    note = "shop reads Left too, which has 6 partitions: one key's events may go to different processes\n"
    assert note in grown.stdout
    assert note in planned.stdout
    assert alike in grown.stdout
    assert planned.stdout.endswith(f"nothing to do\n{alike}")
    assert examined.returncode == 0
    assert "     fix: microflow topics apply shop.py --partitions Right=6 --yes\n" in examined.stdout
    assert mended.returncode == 0
    assert project.run("topics", "plan", "shop.py").stdout.endswith("nothing to do\n")


def test_a_running_service_goes_on_while_its_topic_grows(project: Project) -> None:
    service = project.start("run", "payments.py")
    service.until_ready()

    project.json_lines("topics", "apply", "payments.py", "--partitions", "OrderAccepted=9", "--yes")
    project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--key", "order_id")

    service.until(service.reports)
    assert service.reports()[0]["outcome"] == "done"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--partitions", "OrderAcepted=5"], "none of these services has to do with OrderAcepted."),
        (["--partitions", "0"], "--partitions: '0' is no positive number."),
        (["--partitions", "OrderAccepted=many"], "--partitions OrderAccepted: 'many' is no positive number."),
        (["--retention", "a week"], "'a week' is no span of time."),
        (["--log", "memory:"], "A log in memory is gone with its process."),
    ],
)
def test_what_makes_no_sense_is_told(project: Project, arguments: list[str], said: str) -> None:
    ended = project.run("topics", "plan", "payments.py", *arguments)

    assert ended.returncode == 2
    assert said in ended.stderr


def test_partitions_by_which_a_topic_grew_are_used_after_the_switch(project: Project) -> None:
    """Rule 8."""
    service = project.start("run", "payments.py")
    service.until_ready()
    service.stop()
    project.json_lines("topics", "apply", "payments.py", "--partitions", "PaymentReceived=9", "--yes")

    [switched] = project.json_lines("topics", "switch", "PaymentReceived")
    again = project.run("topics", "switch", "PaymentReceived", "payments.py")

    assert (switched["before"], switched["after"]) == (6, 9)
    assert again.stdout == "SQLite .microflow/payments.db: all 9 partitions of PaymentReceived are used already\n"


def test_a_switch_is_refused_while_a_group_has_not_read_everything(project: Project) -> None:
    """Rule 8."""
    project.write(
        "shop.py",
        """
        from microflow import Event, on

        class PaymentReceived(Event):
            order_id: str

        @on("PaymentReceived")
        async def note(payment: PaymentReceived) -> None: ...
        """,
    )
    for target in ("payments.py", "shop.py"):
        service = project.start("run", target)
        service.until_ready()
        if target == "payments.py":
            project.json_lines("emit", "OrderAccepted", "order_id=o-1", "--app", "payments.py")
            service.until(service.reports)
        else:
            service.until(service.reports)
        service.stop()
    service = project.start("run", "payments.py")
    service.until_ready()
    project.json_lines("emit", "OrderAccepted", "order_id=o-2", "--app", "payments.py")
    service.until(service.reports)
    service.stop()
    project.json_lines("topics", "apply", "payments.py", "--partitions", "PaymentReceived=9", "--yes")

    refused = project.run("topics", "switch", "PaymentReceived", "payments.py")
    forced = project.run("topics", "switch", "PaymentReceived", "payments.py", "--force")

    assert refused.returncode == 1
    assert "✗ payments: Not everything of PaymentReceived has been read: shop (1)." in refused.stderr
    assert "6 → 9 partitions of PaymentReceived are used from now on" in forced.stdout


def test_without_any_database_a_switch_asks_whose(project: Project) -> None:
    ended = project.run("topics", "switch", "OrderAccepted")

    assert ended.returncode == 2
    assert "✗ In whose database?" in ended.stderr
