"""Targets: what may be typed, and which service it names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from microflow.errors import TargetError
from microflow.service import build
from microflow.targets import load_target
from tests.cli.projects import SERVICE, Project

WITH_SERVICE = f"from microflow import Service\n{SERVICE}\n"


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports is forgotten after it."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def name_of(target: str) -> str:
    return build(load_target(target).service).name


@pytest.mark.parametrize("target", ["payments", "payments.py", "./payments.py"])
def test_a_module_without_a_service_is_one(project: Project, target: str) -> None:
    assert name_of(target) == "payments"


@pytest.mark.parametrize("target", ["shop/billing.py", "shop.billing", "shop/billing.py:flow", "shop.billing:flow"])
def test_a_module_of_a_package_may_be_named_as_file_or_as_module(project: Project, target: str) -> None:
    project.write("shop/__init__.py", "")
    project.write("shop/prices.py", "VAT = 19\n")
    project.write("shop/billing.py", f"from .prices import VAT\n{WITH_SERVICE}flow = Service('billing-de')\n")

    assert name_of(target) == "billing-de"
    assert load_target(target).module.__name__ == "shop.billing"


def test_a_file_elsewhere_may_import_its_neighbours(project: Project) -> None:
    project.write("services/prices.py", "VAT = 19\n")
    project.write("services/billing.py", f"from prices import VAT\n{SERVICE}")

    assert name_of("services/billing.py") == "billing"


@pytest.mark.parametrize("target", ["shop.py:make()", "shop.py:Holder.inner", "shop.py"])
def test_an_attribute_may_be_a_factory_or_dotted(project: Project, target: str) -> None:
    project.write(
        "shop.py",
        f"{WITH_SERVICE}\nclass Holder:\n    inner = Service('inner')\n"
        "def make():\n    return Service('made')\nanything = Service('only')\n",
    )

    assert name_of(target) in {"made", "inner", "only"}
    assert name_of("shop.py:make()") == "made"


def test_of_several_services_one_must_be_named(project: Project) -> None:
    project.write("shop.py", f"{WITH_SERVICE}\none = Service('one')\ntwo = Service('two')\n")

    with pytest.raises(TargetError) as refused:
        load_target("shop.py")

    assert "one, two" in refused.value.what
    assert refused.value.fix == "microflow run shop.py:one shop.py:two"
    assert name_of("shop.py:two") == "two"


def test_a_service_of_the_module_goes_before_one_that_it_imports(project: Project) -> None:
    project.write("other.py", f"{WITH_SERVICE}\nservice = Service('other')\n")
    project.write("shop.py", f"from other import service as theirs\n{WITH_SERVICE}\nmine = Service('mine')\n")

    assert name_of("shop.py") == "mine"


def test_a_file_with_the_name_of_an_imported_module_is_refused(project: Project) -> None:
    project.write("json.py")

    with pytest.raises(TargetError, match="another module has this name"):
        load_target("json.py")


def test_two_files_of_one_name_are_not_mistaken_for_each_other(project: Project) -> None:
    project.write("a/billing.py")
    project.write("b/billing.py")
    load_target("a/billing.py")

    with pytest.raises(TargetError, match="another module has this name"):
        load_target("b/billing.py")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("", "names no module"),
        (":service", "names no module"),
        ("pay-ments", "names no module"),
        ("paymnets", "There is no module paymnets."),
        ("shop.billing", "There is no module shop.billing: shop is missing."),
        ("nowhere/payments.py", "There is no nowhere/payments.py."),
        (".", "is a folder"),
        ("payments.py:take_payment", "payments.py:take_payment is a function, and no Service."),
        ("payments.py:take_payment.no", 'has no "no"'),
        ("payments.py:SIZE", "is an int, and no Service."),
        ("payments.py:SIZE()", "SIZE cannot be called."),
    ],
)
def test_what_names_no_service_is_told(project: Project, target: str, said: str) -> None:
    project.write("payments.py", f"{SERVICE}\nSIZE = 3\n")

    with pytest.raises(TargetError) as refused:
        load_target(target)

    assert said in str(refused.value)


def test_a_name_that_is_missing_is_told_with_what_the_module_defines_and_not_what_it_imports(project: Project) -> None:
    with pytest.raises(TargetError) as told:
        load_target("payments.py:servce")

    assert told.value.why == "It defines: OrderAccepted, PaymentReceived, take_payment."
