from __future__ import annotations

from millrace.scheduler.deadlines import DeadlineQueue
from millrace.scheduler.fairness import TenantAccount
from millrace.scheduler.sequence import LiveRequest


def live_request(make_request, request_id, deadline_unix_ms):
    request = make_request(request_id, deadline_unix_ms=deadline_unix_ms)
    return LiveRequest(request, (0, 0), TenantAccount("", 1.0, 2.0))


def test_requests_expire_in_the_order_of_their_deadlines(make_request):
    requests = {name: live_request(make_request, name, at) for name, at in (("a", 9), ("b", 5))}
    deadlines = DeadlineQueue(requests)
    for request in requests.values():
        deadlines.add(request)

    assert [r.request_id for r in deadlines.expired(4)] == []
    assert [r.request_id for r in deadlines.expired(9)] == ["b", "a"]
    assert [r.request_id for r in deadlines.expired(99)] == []


def test_a_request_without_a_deadline_never_expires(make_request):
    requests = {"a": live_request(make_request, "a", 0)}
    deadlines = DeadlineQueue(requests)
    deadlines.add(requests["a"])

    assert list(deadlines.expired(2**62)) == []


def test_an_id_used_again_is_not_ended_by_its_old_deadline(make_request):
    requests = {"a": live_request(make_request, "a", 5)}
    deadlines = DeadlineQueue(requests)
    deadlines.add(requests["a"])
    requests["a"] = live_request(make_request, "a", 50)
    deadlines.add(requests["a"])

    assert list(deadlines.expired(10)) == []
    assert list(deadlines.expired(50)) == [requests["a"]]


def test_requests_that_ended_early_do_not_pile_up(make_request):
    requests: dict[str, LiveRequest] = {}
    deadlines = DeadlineQueue(requests)
    for i in range(5000):
        name = str(i)
        requests[name] = live_request(make_request, name, 10_000 + i)
        deadlines.add(requests[name])
        del requests[name]

    assert len(deadlines) < 1100
