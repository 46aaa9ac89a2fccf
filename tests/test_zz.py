import pytest
from datetime import timedelta
from sequences import Sequence, step, Abort, repeat, finish, event
from sequences.testing import run, isolate_sequences, assert_ledger, drain, clock
pytestmark = pytest.mark.django_db
@pytest.fixture(autouse=True)
def _iso():
    with isolate_sequences():
        yield
class M:
    app_label = "shop"
def test_event():
    class A(Sequence):
        class Meta: app_label = "shop"
        @step
        def one(self): ...
        approval = event(timeout=timedelta(days=3))
        @step
        def two(self): self.data["x"] = self.result("approval")["ok"]
    s = A()
    drain()
    r = s.run
    assert list(A.runs.waiting_for(A.approval)) == [r]
    assert r.deliver("approval", {"ok": 1}) is True
    assert r.deliver(A.approval, {"ok": 2}) is False
    drain(); r.refresh_from_db()
    assert r.status == "succeeded" and r.data == {"approval": {"ok": 1}, "x": 1}
    s = A(); assert s.run.deliver("approval", {"ok": 5}); drain(); s.run.refresh_from_db(); assert s.run.data["x"] == 5
    s = run(A); assert s.run.status == "failed", s.run.status
    s.run.retry(); drain(); s.run.deliver("approval", {"ok":7}); drain(); s.run.refresh_from_db(); assert s.run.status == "succeeded"
def test_each():
    class B(Sequence):
        class Meta: app_label = "shop"
        @step
        def one(self): self.data["n"] = list(range(250))
        @step(each="n", concurrency=7)
        def sq(self, item):
            return item*item
        @step(each=lambda s: (i for i in range(1050)), batch=100)
        def b(self, items): return len(items)
        @step(each=lambda s: [])
        def none(self, i): ...
        @step
        def total(self):
            self.data["sum"] = sum(self.results("sq")); self.data["b"] = list(self.results("b")); self.data["n"]=0
    s = run(B)
    assert s.run.status == "succeeded", list(s.run.failures.all())
    assert s.data["sum"] == sum(i*i for i in range(250))
    assert s.data["b"] == [100]*10+[50]
def test_each_failed():
    bad = {3, 100}
    class C(Sequence):
        class Meta: app_label = "shop"
        @step(each=lambda s: range(1500), max_retries=0)
        def sq(self, item):
            if item in bad: raise ValueError(item)
            return item
        @step
        def total(self): self.data["sum"] = sum(self.results("sq"))
    s = run(C)
    assert s.run.status == "failed"
    assert s.run.failures.count() == 3, list(s.run.failures.all())
    bad.clear()
    s.run.retry(); drain(); s.run.refresh_from_db()
    assert s.run.status == "succeeded", s.run.status
    assert s.run.data["sum"] == sum(range(1500))
