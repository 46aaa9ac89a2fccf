import sys
from types import ModuleType, SimpleNamespace

import pytest
from django.apps import apps

from sequences import Sequence, get, port, step
from sequences.definitions import registry
from sequences.exceptions import InvalidDefinition, UnknownSequence


@pytest.fixture(autouse=True)
def _isolated():
    with registry.isolated():
        yield


def declare(name="Order", *, module=__name__, app_label="shop", aliases=()):
    options = {"app_label": app_label} if app_label else {}
    meta = type("Meta", (), {**options, "aliases": aliases})
    body = {"__module__": module, "__qualname__": name, "Meta": meta, "pay": step(lambda self: 1)}
    return type(Sequence)(name, (Sequence,), body)


def refused(*arguments, **options):
    with pytest.raises(InvalidDefinition) as caught:
        declare(*arguments, **options)
    return str(caught.value)


def test_a_sequence_is_found_by_its_label():
    order = declare()
    assert get("shop.Order") is registry.find("shop.Order") is order


def test_a_sequence_is_found_by_its_old_labels():
    order = declare(aliases=["old.Purchase"])
    assert get("old.Purchase") is order
    assert order in registry.all()
    assert registry.all().count(order) == 1


def test_a_label_that_is_unknown_is_an_error_with_the_nearest():
    declare(aliases=["old.Purchase"])
    with pytest.raises(UnknownSequence) as caught:
        get("shop.Ordr")
    assert (
        str(caught.value) == "No sequence is registered as 'shop.Ordr'. Did you mean 'shop.Order'?"
    )
    with pytest.raises(LookupError, match=r"Did you mean 'old\.Purchase'\?"):
        get("old.Purchas")
    assert registry.find("shop.Ordr") is None


def test_all_are_sorted_by_label():
    with registry.isolated():
        registered = [declare("B"), declare("A", app_label="zoo"), declare("A")]
        labels = [cls._definition.label for cls in registry.all() if cls in registered]
    assert labels == ["shop.A", "shop.B", "zoo.A"]


def test_two_classes_of_one_label_are_refused_with_both_modules():
    first = declare(module="shop.sequences")
    assert refused(module="shop.more") == (
        "shop.more.Order: 'shop.Order' is already the label or an alias of shop.sequences.Order. "
        "Rename one of the classes, or set a different app_label in its Meta."
    )
    assert get("shop.Order") is first


def test_an_alias_that_is_taken_is_refused():
    declare(aliases=["old.Purchase"])
    assert "'shop.Order' is already the label or an alias" in refused(
        "Other", aliases=["shop.Order"]
    )
    assert "'old.Purchase' is already the label or an alias" in refused(
        "Other", aliases=["old.Purchase"]
    )
    assert "'old.Purchase' is already the label" in refused("Purchase", app_label="old")
    assert registry.find("shop.Other") is None


def test_a_module_that_is_reloaded_replaces_its_classes():
    declare(aliases=["old.Purchase"])
    again = declare(aliases=["old.Buying"])
    assert get("shop.Order") is get("old.Buying") is again
    assert registry.find("old.Purchase") is None


def test_what_is_registered_in_isolation_is_forgotten():
    order = declare()
    with registry.isolated():
        declare("Other", aliases=["old.Other"])
        again = declare()
        assert get("shop.Order") is again
    assert get("shop.Order") is order
    assert registry.find("shop.Other") is None
    assert registry.find("old.Other") is None


def test_the_engine_binds_every_class_that_comes_later(monkeypatch):
    bound = []
    monkeypatch.setattr(port, "_engine", None)
    declare("Before")
    monkeypatch.setattr(port, "_engine", SimpleNamespace(bind=bound.append))
    order = declare()
    assert bound == [order]


def test_autodiscovery_imports_the_module_of_every_app(monkeypatch):
    imported = []
    monkeypatch.setattr(registry, "autodiscover_modules", imported.append)
    registry.autodiscover()
    assert imported == ["sequences"]


def test_a_class_made_before_the_apps_are_known_is_registered_by_autodiscovery(monkeypatch):
    monkeypatch.setattr(registry, "autodiscover_modules", lambda name: None)
    monkeypatch.setattr(apps, "apps_ready", False)
    early = declare(app_label=None)
    assert registry.find("tests.Order") is None
    assert early._definition is None
    monkeypatch.setattr(apps, "apps_ready", True)
    registry.autodiscover()
    assert get("tests.Order") is early
    assert early._definition.plan.nodes[0].actor == "tests.Order.pay"


def test_a_class_made_before_the_apps_are_known_is_validated_at_once(monkeypatch):
    monkeypatch.setattr(apps, "apps_ready", False)
    with pytest.raises(InvalidDefinition, match="it has no steps"):
        type(Sequence)("Empty", (Sequence,), {"__module__": __name__, "__qualname__": "Empty"})


def test_an_abstract_class_is_not_registered():
    class Base(Sequence):
        class Meta:
            abstract = True

    assert Base not in registry.all()
    with pytest.raises(
        InvalidDefinition, match=r"\.Base: it is abstract\. Register a concrete subclass"
    ):
        registry.register(Base)


def test_a_module_in_no_app_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "elsewhere", ModuleType("elsewhere"))
    assert refused(module="elsewhere", app_label=None) == (
        "elsewhere.Order: its module elsewhere does not belong to an installed app."
        " Add its app to INSTALLED_APPS, or set app_label in its Meta."
    )
