"""The proxy of the tests about commits on their way: what it holds back lands late, whoever sent it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator

import pytest

from pipelines.errors import StorageError
from pipelines.storage.store import Store, open_store
from tests.reliability.slow_proxy import Rule, SlowProxy, slow_proxy
from tests.support.seaweed import S3Server


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[SlowProxy]:
    with slow_proxy(s3.endpoint) as running:
        yield running


@pytest.fixture
def stores(proxy: SlowProxy) -> tuple[Store, Store]:
    """One output, seen past the proxy and through it."""
    uri = f"s3://bkt/output-{secrets.token_hex(4)}"
    return open_store(uri), open_store(uri, {"endpoint_url": proxy.endpoint})


def test_what_no_rule_fits_passes_unchanged(stores: tuple[Store, Store], proxy: SlowProxy) -> None:
    direct, slow = stores
    rule = proxy.add(Rule("PUT", "*/a *", "refuse"))
    data = secrets.token_bytes(300_000)
    slow.write("b c/ä+%25", data)
    assert direct.read("b c/ä+%25") == data == slow.read("b c/ä+%25")
    assert slow.find("") == {"b c/ä+%25": 300_000}
    assert not slow.exists("b c/none")
    assert not slow.create("b c/ä+%25", b"other")
    slow.delete("b c/ä+%25")
    assert direct.find("") == {}
    assert rule.keys == []


def test_a_put_that_is_held_back_lands_when_it_is_told_to(stores: tuple[Store, Store], proxy: SlowProxy) -> None:
    direct, slow = stores
    rule = proxy.add(Rule("PUT", "*/held-*", "hold", after=1, count=2))
    slow.write("held-0", b"passes")
    writers = [threading.Thread(target=slow.create, args=(f"held-{number}", b"late")) for number in (1, 2)]
    for writer in writers:
        writer.start()
    rule.wait(2)
    slow.write("held-3", b"passes")
    assert sorted(direct.find("")) == ["held-0", "held-3"]
    assert proxy.land(rule) == [200, 200]
    for writer in writers:
        writer.join(20)
    assert (direct.read("held-1"), direct.read("held-2")) == (b"late", b"late")


def test_it_lands_though_its_sender_has_given_up(stores: tuple[Store, Store], proxy: SlowProxy) -> None:
    direct, _ = stores
    impatient = open_store(direct.uri, {"endpoint_url": proxy.endpoint, "request_timeout_s": 3})
    rule = proxy.add(Rule("PUT", "*/held", "hold"))
    with pytest.raises(StorageError, match="no answer in 3 s"):
        impatient.write("held", b"late")
    rule.wait(1)
    assert direct.find("") == {}
    direct.create("held", b"mine")
    assert proxy.land(rule) == [200] * len(rule.keys)
    assert direct.read("held") == b"late"


def test_a_lost_answer_and_a_refusal(stores: tuple[Store, Store], proxy: SlowProxy) -> None:
    direct, slow = stores
    lost = proxy.add(Rule("PUT", "*/lost", "lose the answer", count=1))
    assert slow.create("lost", b"once")  # the client asks again, and reads back what is in its way
    assert len(lost.keys) == 1
    refused = proxy.add(Rule("DELETE", "*", "refuse"))
    with pytest.raises(StorageError, match="access denied"):
        slow.delete("lost")
    assert (direct.read("lost"), len(refused.keys)) == (b"once", 1)
    proxy.remove(refused)
    slow.delete("lost")
    assert direct.find("") == {}
