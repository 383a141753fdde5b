"""The tenants' law: nobody hears of what he does not see, in lists, answers or errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hilora import Planner, get_method
from hilora.errors import InputError, MismatchError
from hilora.pool import Pool, store
from hilora.serve.asked import Caller
from hilora.serve.faults import MissingError
from hilora.serve.limits import Limits
from hilora.serve.tenants import find, inner_name, mask, outer, visible
from hilora.types import Choice

ONE, TWO, NOBODY = Caller("one"), Caller("two"), Caller()


@pytest.fixture
def shared(bench: Any) -> Any:
    """Two tenants with adapters of their own under the same names, one also everybody's; one content twice."""
    bench.serve(is_open=False)
    bench.one, bench.two = bench.token("one"), bench.token("two")
    bench.admin = bench.token("", "use", "upload", "admin")
    assert bench.send("secret", bench.form(7), who=bench.one).status_code == 201
    assert bench.send("secret", bench.form(8), who=bench.two).status_code == 201
    assert bench.send("alpha", bench.form(9), who=bench.two).status_code == 201
    assert bench.send("twin", bench.form(7), who=bench.two).status_code == 201
    return bench


def test_each_sees_his_own_and_what_is_everybodys(shared: Any) -> None:
    public = next(each.hash for each in shared.view.entries if each.name == "alpha")
    assert shared.names(shared.one) == ["alpha", "beta", "gamma", "secret"]
    assert sorted(shared.names(shared.two)) == sorted(["alpha", "beta", "gamma", "secret", "twin", public])
    assert shared.names(shared.admin) == ["alpha", "beta", "gamma"]
    for caller in (ONE, TWO, NOBODY):
        for entry in visible(shared.view, caller):
            place = find(shared.view, caller, entry.name)
            assert shared.view.entries[place].hash == entry.hash
            assert find(shared.view, caller, entry.hash) == place


def test_what_is_not_seen_is_answered_as_what_is_not_there(shared: Any) -> None:
    hidden = shared.client.get("/v1/adapters/twin", headers=shared.two).json()["hash"]
    assert shared.client.get("/v1/adapters/secret", headers=shared.one).json()["hash"] == hidden
    other = next(e.hash for e in shared.view.entries if e.extra.get("called") == "secret" and e.hash != hidden)
    for name in ("twin", other, inner_name("two", "secret"), inner_name("one", "secret")):
        for call in (shared.client.get, shared.client.delete):
            answers = [call(f"/v1/adapters/{each}", headers=shared.one) for each in (name, "zzzz")]
            assert {answer.status_code for answer in answers} == {404}
            told, nothing = (answer.json()["error"]["message"] for answer in answers)
            assert told == nothing.replace("zzzz", name)


def test_hints_name_only_what_is_seen(shared: Any) -> None:
    for caller, name, hint in (
        (ONE, "twim", ""),
        (TWO, "twim", "'twin'"),
        (NOBODY, "secre", ""),
        (ONE, "bet", "'beta'"),
    ):
        with pytest.raises(MissingError) as caught:
            find(shared.view, caller, name)
        assert (f"Did you mean {hint}" in str(caught.value)) is bool(hint)


def test_names_and_contents_of_others_are_free(shared: Any) -> None:
    for name, seed in (("twin", 11), ("alpha", 12), ("copy", 8)):
        assert shared.send(name, shared.form(seed), who=shared.one).status_code == 201
    assert shared.send("twin", shared.form(8), who=shared.admin).status_code == 201


def test_a_refusal_tells_nothing_of_others(shared: Any) -> None:
    names = [entry.name for entry in shared.view.entries]
    taken = shared.send("secret", shared.form(8), who=shared.one)
    assert taken.status_code == 409
    shared.uploads.limits = Limits(capture=0.3)
    public = enumerate(("alpha", "beta", "gamma"))
    stolen = [text for seed, task in (*public, (7, "delta")) for text in shared.texts(task, seed)]
    captured = shared.send("evil", shared.form(13, samples="\n".join(stolen).encode()), who=shared.one)
    assert captured.status_code == 400
    for answer in (taken, captured):
        told = answer.json()["error"]["message"]
        assert not any(word in told for word in [*names, "two", "twin"])


def test_what_others_have_changes_no_verdict(bench: Any) -> None:
    bench.serve(is_open=False)
    one, two = bench.token("one"), bench.token("two")
    own = {f"own{seed}": "\n".join(bench.texts("delta", seed)) for seed in (70, 71, 72)}
    for seed, (name, texts) in enumerate(own.items()):
        assert bench.send(name, bench.form(20 + seed, samples=texts.encode()), who=two).status_code == 201
    bench.uploads.limits = Limits(capture=0.1)
    stolen = bench.form(30, samples="\n".join(own.values()).encode())
    assert bench.send("mine", stolen, who=two).status_code == 400
    assert bench.send("mine", stolen, who=one).status_code == 201


def test_public_ones_are_for_administrators(shared: Any) -> None:
    refused = shared.send("new", shared.form(14), who=shared.one, private="false")
    assert refused.status_code == 403
    assert shared.client.delete("/v1/adapters/beta", headers=shared.one).status_code == 403
    assert shared.send("new", shared.form(14), who=shared.admin).status_code == 201
    assert "new" in shared.names(shared.two)
    assert shared.client.delete("/v1/adapters/new", headers=shared.admin).status_code == 200


def test_another_tenants_are_for_administrators(shared: Any) -> None:
    assert shared.client.get("/v1/adapters", params={"tenant": "two"}, headers=shared.one).status_code == 403
    found = shared.client.get("/v1/adapters", params={"tenant": "one"}, headers=shared.admin).json()["data"]
    assert "secret" in [each["name"] for each in found]
    gone = shared.client.delete("/v1/adapters/secret", params={"tenant": "one"}, headers=shared.admin)
    assert gone.status_code == 200
    assert "secret" not in shared.names(shared.one)
    assert "secret" in shared.names(shared.two)


def test_a_name_means_ones_own_and_the_other_goes_by_its_hash(shared: Any) -> None:
    view = shared.view
    public = view.index("alpha")
    own = view.index(inner_name("two", "alpha"))
    assert find(view, TWO, "alpha") == own
    assert find(view, ONE, "alpha") == find(view, NOBODY, "alpha") == public
    assert find(view, TWO, view.entries[public].hash) == public
    choice = Choice("alpha", 0.0, 1.0, 1, 2, None)
    assert outer(view, ONE, choice).name == "alpha"
    assert outer(view, TWO, choice).name == view.entries[public].hash
    assert outer(view, TWO, Choice(view.entries[own].name, 0.0, 1.0, 1, 2, None)).name == "alpha"


def test_prompts_use_what_their_caller_sees_and_the_library_what_is_everybodys(shared: Any) -> None:
    view = shared.view
    whose = [entry.extra.get("tenant", "") for entry in view.entries]
    for caller in (ONE, TWO, NOBODY):
        assert mask(view, caller, None).tolist() == [tenant in ("", caller.tenant) for tenant in whose]
    only = mask(view, TWO, ["alpha", "beta"])
    assert only.nonzero()[:, 0].tolist() == sorted([view.index(inner_name("two", "alpha")), view.index("beta")])
    with pytest.raises(MissingError):
        mask(view, ONE, ["twin"])
    assert view.allowed().tolist() == [tenant == "" for tenant in whose]
    planner = Planner(view, get_method("selection"), shared.embedder)
    found = planner.explain(planner.route(shared.texts("delta", 7)))
    assert {choice.name for row in found for choice in row} <= {"alpha", "beta", "gamma"}


def test_older_versions_refuse_a_pool_with_tenants(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ABILITIES", frozenset())
    with pytest.raises(MismatchError, match="tenants"):
        Pool.open(shared.pool.path)


def test_no_inner_name_is_another_ones_outer_name() -> None:
    found = [inner_name(t, n) for t in ("", "a", "a.b", "b") for n in ("x", "b.x", "a" * 128, "a" * 127 + "b")]
    assert len(set(found)) == len(found)
    for name in found:
        if name.split(".")[-1] and len(name.split(".")[-1]) == 20:
            with pytest.raises(InputError):
                inner_name("", name)


def test_adapters_called_as_the_service_calls_something_are_named_by_hash(bench: Any) -> None:
    entry = bench.pool.add("auto", bench.folder(40), bench.texts("delta", 40), bench.embedder)
    bench.view = Pool.open(bench.pool.path)
    bench.serve()
    assert entry.hash in bench.names()
    assert "auto" not in bench.names()
    assert bench.view.entries[find(bench.view, NOBODY, entry.hash)].name == "auto"
    with pytest.raises(MissingError):
        find(bench.view, NOBODY, "auto")
    assert torch.equal(mask(bench.view, NOBODY, None), torch.ones(4, dtype=torch.bool))
