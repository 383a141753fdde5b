"""Laws of uploads: what is good is served, what is not leaves nothing, and either way the server goes on."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hilora.errors import PoolError
from hilora.pool import Pool
from hilora.pool.lease import holders
from hilora.pool.private import write_features
from hilora.route.features import Features, hash_terms
from hilora.serve.checker import Checker
from hilora.serve.faults import LateError
from hilora.serve.limits import Limits
from hilora.serve.parts import receive
from hilora.serve.state import State


def contents(folder: Path) -> dict[str, bytes]:
    """What a pool is made of, but for what a server keeps beside it."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {str(p): p.read_bytes() for p in found if "serve" not in p.parts and p.name != ".lock"}


# --- what is good -----------------------------------------------------------------------------------


def test_what_is_good_is_checked_in_another_process_and_then_live_and_served(bench: Any) -> None:
    bench.serve(checker=Checker())
    sent = bench.send("new")
    assert (sent.status_code, sent.json()["state"]) == (201, "live"), sent.text
    assert "new" in bench.names()
    assert bench.seen
    assert bench.left() == []
    assert [entry.name for entry, wrong in Pool.open(bench.pool.path).check() if wrong] == []


def test_an_upload_is_the_adapter_that_pool_add_makes(bench: Any) -> None:
    bench.serve()
    sent = bench.send("new").json()
    entry = bench.pool.add("same", bench.folder(7), bench.texts("delta", 7), bench.embedder)
    found = next(each for each in bench.view.entries if each.name == "new")
    assert (found.hash, found.samples, found.rank) == (entry.hash, entry.samples, entry.rank)
    assert sent["hash"] == entry.hash


def test_without_waiting_the_state_is_told_until_it_is_live(bench: Any) -> None:
    bench.serve()
    sent = bench.client.post("/v1/adapters", files=bench.form(), data={"name": "new"})
    assert sent.status_code == 202
    assert sent.json()["state"] in ("received", "checking")
    assert sent.headers["location"] == "/v1/adapters/new"
    while (found := bench.client.get("/v1/adapters/new").json())["state"] in ("received", "checking"):
        pass
    assert found["state"] == "live"
    assert found["upload"]["id"] == sent.json()["id"]


def test_the_same_again_gives_the_same_and_another_content_only_put_takes(bench: Any) -> None:
    bench.serve()
    first = bench.send("new").json()
    version = bench.view.version
    assert bench.send("new").json()["hash"] == first["hash"]
    assert bench.view.version == version
    other = bench.send("new", bench.form(8))
    assert (other.status_code, other.json()["error"]["code"]) == (409, "already_exists")
    assert bench.view.version == version
    old = bench.view.factors(first["hash"])
    changed = bench.send("new", bench.form(8), put=True)
    assert changed.status_code == 201
    assert changed.json()["hash"] != first["hash"]
    assert bench.client.get("/v1/adapters/new").json()["hash"] == changed.json()["hash"]
    assert all(torch.isfinite(down).all() for down, _ in old.values())  # whoever began with it, keeps it
    assert bench.pool.path.joinpath("adapters", f"{first['hash']}.safetensors").exists()


def test_of_uploads_of_one_name_at_once_one_content_wins_and_the_others_hear_so(bench: Any) -> None:
    bench.serve()
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda seed=seed: codes.append(bench.send("new", bench.form(seed)).status_code))
        for seed in (7, 8, 7, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = bench.client.get("/v1/adapters/new").json()["hash"]
    assert codes.count(201) >= 1
    assert set(codes) <= {201, 409}
    assert [each.hash for each in bench.view.entries if each.name == "new"] == [first]


def test_what_is_deleted_is_served_no_more(bench: Any) -> None:
    bench.serve()
    content = bench.send("new").json()["hash"]
    assert bench.client.delete(f"/v1/adapters/{content}").status_code == 200
    assert "new" not in bench.names()
    assert bench.client.get("/v1/adapters/new").status_code == 404
    assert bench.client.delete("/v1/adapters/new").status_code == 404


def test_pages_hold_each_adapter_once_in_order(bench: Any) -> None:
    bench.serve()
    found, last = [], ""
    while True:
        page = bench.client.get("/v1/adapters", params={"limit": 2, "after": last}).json()
        found += [each["name"] for each in page["data"]]
        if not page["has_more"]:
            break
        last = page["last"]
    assert found == ["alpha", "beta", "gamma"]
    assert bench.client.get("/v1/adapters", params={"limit": 0}).status_code == 400


def test_canonical_rocs_are_kept_and_are_those_that_would_be_worked_out(bench: Any) -> None:
    from hilora.pool.canonical import canonical_factors
    from hilora.pool.derived import Canonical

    bench.serve()
    content = bench.send("new").json()["hash"]
    assert (bench.pool.path / "canonical" / f"{content}.safetensors").exists()
    kept, made = Canonical(bench.view).factors(f"canonical {content}"), canonical_factors(bench.view.factors(content))
    for site, pair in made.items():
        for one, other in zip(pair, kept[site], strict=True):
            torch.testing.assert_close(one, other)


# --- attacks: each row of what happened to others ----------------------------------------------------

CANARY = Path(tempfile.gettempdir()) / f"hilora-canary-{os.getpid()}"


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(CANARY),)


PICKLE = pickle.dumps({"base_model.model.x.lora_A.weight": Code()})
Files = Callable[[Any], dict[str, Any]]


def huge_header(bench: Any) -> bytes:
    return (1 << 40).to_bytes(8, "little") + b"{" * 100


def some(tensors: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = change(tensors[name])


ATTACKS: dict[str, tuple[Files, str]] = {
    # code by way of a pickle, and what its name says
    "a pickle in the place of weights": (lambda b: {"weights": PICKLE}, "safetensors"),
    **{
        f"weights named {end}": (lambda b, end=end: {"weights": (f"adapter_model{end}", PICKLE)}, "pickle")
        for end in (".bin", ".pt", ".ckpt", ".pkl", ".pth")
    },
    # code by way of a config
    "another kind of adapter": (lambda b: {"config": b.config(peft_type="LOHA")}, "peft_type"),
    "a field that nobody knows": (lambda b: {"config": b.config(auto_map={"AutoModel": "x.Y"})}, "auto_map"),
    "a config nested deep": (lambda b: {"config": b"[" * 100_000}, "JSON"),
    "a pattern that never ends": (lambda b: {"config": b.config(target_modules="(a+)+$" * 50)}, "target_modules"),
    "a rank without bound": (lambda b: {"config": b.config(r=10**9)}, "rank"),
    "another base": (lambda b: {"config": b.config(base_model_name_or_path="llama-70b")}, "llama-70b"),
    # weights that break a server
    "NaN": (lambda b: {"weights": b.weights(lambda t: some(t, lambda x: x * torch.nan))}, "NaN"),
    "infinity": (lambda b: {"weights": b.weights(lambda t: some(t, lambda x: x / 0))}, "infinite"),
    "other shapes": (lambda b: {"weights": b.weights(lambda t: some(t, lambda x: x[:, :-1].clone()))}, "shape"),
    "another type": (lambda b: {"weights": b.weights(lambda t: some(t, lambda x: x.double()))}, "dtype"),
    "modules of another base": (
        lambda b: {"weights": b.weights(lambda t: t.update({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}))},
        "x",
    ),
    "no weights": (lambda b: {"weights": b""}, "safetensors"),
    "a header without end": (lambda b: {"weights": huge_header(b)}, "header"),
    "half a file": (lambda b: {"weights": b.weights(lambda t: None)[:-9]}, "cannot be read"),
    # samples
    "no samples": (lambda b: {"samples": None}, "samples"),
    "one sample": (lambda b: {"samples": b'{"inputs": "a b"}\n'}, "1 sample"),
    "samples that are no text": (lambda b: {"samples": b"\xff\xfe\x00"}, "UTF-8"),
    "samples nested deep": (lambda b: {"samples": b'{"inputs": ' + b"[" * 50_000}, "JSON"),
    "samples without end": (lambda b: {"samples": json.dumps({"inputs": "a" * 9000}).encode() * 2}, "line 1"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_with_a_reason_and_the_server_goes_on(bench: Any, attack: str) -> None:
    change, word = ATTACKS[attack]
    bench.serve()
    before, version = contents(bench.pool.path), bench.view.version
    sent = bench.send("evil", bench.form(**change(bench)))
    assert sent.status_code == 400, sent.text
    told = sent.json()["error"]["message"]
    assert word in told
    assert str(bench.home) not in sent.text
    assert contents(bench.pool.path) == before
    assert bench.view.version == version
    assert bench.names() == ["alpha", "beta", "gamma"]
    assert not CANARY.exists()
    assert bench.is_well()


@pytest.mark.parametrize(
    "name",
    ["../up", "/etc/x", "a/b", "..", ".hidden", "auto", "base", "-" + "a" * 20, "x\0y", "f" * 64, f"x.{'a' * 20}"],
)
def test_names_are_no_paths_nor_what_the_service_calls_its_own(bench: Any, name: str) -> None:
    bench.serve()
    bench.form()
    before = contents(bench.home)
    assert bench.send(name).status_code == 400
    assert contents(bench.home) == before
    assert bench.is_well()


@pytest.mark.parametrize("given", ["../../evil.safetensors", "/tmp/evil", "a\\..\\b", "\0"])
def test_file_names_are_not_looked_at(bench: Any, given: str) -> None:
    bench.serve()
    form = bench.form()
    form["weights"] = (given, form["weights"][1])
    assert bench.send("new", form).status_code == 201
    assert bench.left() == []
    assert not list(bench.home.rglob("*evil*"))


def test_bytes_fields_and_forms_have_bounds(bench: Any) -> None:
    whole = sum(len(content) for _, content in bench.form().values())
    bench.serve(Limits(upload=2 * whole, rank=4, samples=30, sample_length=200))
    assert bench.send("evil", bench.form(weights=bytes(2 * whole + 1))).status_code == 413
    assert bench.send("evil", bench.form(samples=b"a\n" * whole)).status_code == 413
    assert bench.send("evil", bench.form(samples=b"aa bb\n" * 31)).status_code == 400
    assert bench.send("evil", bench.form(samples=b"a" * 201 + b"\nb\n")).status_code == 400
    assert bench.send("evil", bench.form(other=b"x")).status_code == 400
    assert bench.send("evil", None, private="perhaps").status_code == 400
    for body, kind in ((b"{}", "application/json"), (b"--x\r\n", "multipart/form-data; boundary=x"), (b"", "x")):
        sent = bench.client.post("/v1/adapters", content=body, headers={"content-type": kind})
        assert sent.status_code == 400
    assert bench.is_well()


def test_quotas_are_of_a_tenants_own(bench: Any) -> None:
    bench.serve(Limits(adapters=1, rank=1), is_open=False)
    one, two = bench.token("one"), bench.token("two")
    assert "rank" in bench.send("a", who=one).json()["error"]["message"]
    bench.uploads.limits = bench.uploads.publisher.limits = Limits(adapters=1)
    assert bench.send("a", who=one).status_code == 201
    assert bench.send("a", bench.form(8), who=one, put=True).status_code == 201
    full = bench.send("b", who=one)
    assert (full.status_code, full.json()["error"]["code"]) == (403, "quota_exceeded")
    assert bench.send("b", who=two).status_code == 201
    bench.uploads.publisher.limits = Limits(tenant_bytes=10)
    assert bench.send("c", who=two).json()["error"]["code"] == "quota_exceeded"


class Broken(Checker):
    """Starts a process that does something else than checking."""

    def __init__(self, code: str) -> None:
        super().__init__(["python3", "-c", f"import sys; sys.stdin.read(); {code}"])


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "import os, time; os.fork() or time.sleep(60); time.sleep(60)",
        "import os; os.abort()",
        "print('{')",
        "print('[' * 100000)",
        "sys.exit(3)",
        "sys.stdout.write('x' * (3 << 20))",
    ],
)
def test_a_check_that_hangs_or_breaks_refuses_one_upload_and_no_other(bench: Any, code: str) -> None:
    bench.serve(Limits(check_seconds=1.0), checker=Broken(code))
    sent = bench.send("evil")
    assert sent.status_code == 400
    assert bench.left() == []
    bench.uploads.checker = type(bench).inside()
    assert bench.is_well()


def test_a_check_has_bounds_on_memory(bench: Any) -> None:
    bench.serve(Limits(check_memory=1 << 20), checker=Checker())
    sent = bench.send("evil")
    assert sent.status_code == 400
    assert bench.left() == []


# --- poisoned samples --------------------------------------------------------------------------------


def test_who_would_take_the_others_prompts_is_refused(bench: Any) -> None:
    bench.serve()
    stolen = [text for seed, task in enumerate(("alpha", "beta", "gamma")) for text in bench.texts(task, seed)]
    sent = bench.send("evil", bench.form(samples="\n".join(stolen).encode()))
    assert sent.status_code == 400, sent.text
    assert "other adapters' samples" in sent.json()["error"]["message"]
    assert not any(task in sent.text for task in ("alpha", "beta", "gamma"))
    assert bench.is_well()


def test_under_an_epoch_it_is_the_same(bench: Any) -> None:
    versions = [bench.texts("delta", seed) for seed in (50, 51, 52)]
    for seed, texts in enumerate(versions):
        bench.pool.add(f"delta{seed}", bench.folder(50 + seed), texts, bench.embedder)
    bench.pool.renew_epoch()
    bench.view = Pool.open(bench.pool.path)
    bench.serve(Limits(capture=0.1))
    stolen = "\n".join(text for texts in versions for text in texts)
    assert bench.send("evil", bench.form(samples=stolen.encode())).status_code == 400
    assert bench.send("good", bench.form(99, task="beta")).status_code == 201


def test_an_epoch_is_made_for_a_server_that_is_there(bench: Any) -> None:
    def made_for(server: int) -> int:
        command = [sys.executable, "-m", "hilora.serve.renew", str(bench.pool.path), str(server)]
        return subprocess.run(command, check=False, capture_output=True).returncode

    assert made_for(1) != 0
    assert not Pool.open(bench.pool.path).epoch_key
    assert made_for(os.getpid()) == 0
    assert Pool.open(bench.pool.path).epoch_key


def test_another_version_of_one_task_is_not_refused(bench: Any) -> None:
    bench.serve()
    texts = bench.texts("alpha", 60)
    assert bench.send("alpha2", bench.form(samples="\n".join(texts).encode())).status_code == 201


def private(bench: Any, embedder: Any = None, **changes: Any) -> bytes:
    """Features of samples, made where the texts are, with something wrong."""
    texts, path = bench.texts("delta", 7), bench.home / "features.safetensors"
    features = Features(bench.embedder(texts).contiguous(), hash_terms(texts))
    write_features(path, features, embedder or bench.pool.embedder)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = {name: changes.get(name, torch.clone)(tensor) for name, tensor in load_file(path).items()}
    save_file(tensors, path, about)
    return path.read_bytes()


def test_private_samples_give_what_the_texts_would(bench: Any) -> None:
    bench.serve()
    sent = bench.send("new", bench.form(samples=None, features=private(bench)))
    assert sent.status_code == 201, sent.text
    entry = bench.pool.add("same", bench.folder(7), bench.texts("delta", 7), bench.embedder)
    assert bench.view.entries[bench.view.index("new")].samples == entry.samples


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"embeddings": lambda x: x * 100}, "lengths"),
        ({"embeddings": lambda x: x * torch.nan}, "NaN"),
        ({"embeddings": lambda x: x[:1].expand_as(x).clone()}, "the same"),
        ({"embeddings": lambda x: x[:, :-1].clone()}, "shape"),
        ({"embeddings": lambda x: x.double()}, "float32"),
        ({"phrases": lambda x: -x}, "terms"),
        ({"phrases": lambda x: x.flip(0)}, "terms"),
        ({"phrases_of_text": lambda x: x + 1}, "terms"),
        ({"phrases_of_text": lambda x: x[1:].clone()}, "shape"),
        ({"characters": torch.zeros_like}, "terms"),
        ({"outlines": lambda x: -x}, "terms"),
        ({"outlines": lambda x: x[:, :1].expand_as(x).clone()}, "terms"),
        ({"outlines": lambda x: x[:, 1:].clone()}, "shape"),
        ({"outlines": lambda x: x.long()}, "int32"),
    ],
)
def test_features_that_are_none_of_texts_are_refused(bench: Any, changes: Any, word: str) -> None:
    bench.serve()
    sent = bench.send("evil", bench.form(samples=None, features=private(bench, **changes)))
    assert sent.status_code == 400
    assert word in sent.json()["error"]["message"]
    assert bench.is_well()


def test_features_of_another_embedder_are_refused(bench: Any) -> None:
    bench.serve()
    other = replace(bench.pool.embedder, fingerprint="0")
    sent = bench.send("evil", bench.form(samples=None, features=private(bench, embedder=other)))
    assert "another embedder" in sent.json()["error"]["message"]


# --- crashes, leases ---------------------------------------------------------------------------------


def test_what_a_crash_left_is_deleted_at_the_next_start_and_its_uploads_are_refused(bench: Any) -> None:
    state = State(bench.pool.path)
    upload = state.receive("", "new", 10)
    left = bench.pool.path / "serve" / "incoming" / "123-dead" / upload.id
    left.mkdir(parents=True)
    (left / "samples.jsonl").write_text("confidential")
    bench.serve()
    assert bench.left() == []
    assert (found := state.upload(upload.id)) is not None
    assert found.state == "refused"
    assert "interrupted" in found.reason
    assert bench.is_well()


def test_what_a_crash_left_in_the_pool_is_live_at_the_next_start(bench: Any) -> None:
    state = State(bench.pool.path)
    old = bench.pool.entries[bench.pool.index("alpha")]
    late, other, same = (state.receive("", name, 10) for name in ("late", "other", "alpha"))
    entry = bench.pool.add("late", bench.folder(7), bench.texts("delta", 7), bench.embedder)
    bench.pool.publish(replace(entry, extra={"upload": late.id}), replace=True)
    for upload, content in ((late, entry.hash), (other, entry.hash), (same, old.hash)):
        state.move(upload.id, "checking", content=content)
    bench.view = Pool.open(bench.pool.path)
    bench.serve()
    states = [state.upload(upload.id).state for upload in (late, other, same)]
    assert states == ["live", "refused", "refused"]  # of the last one only an older one is there
    assert bench.client.get("/v1/adapters/late").json()["upload"]["hash"] == entry.hash


def test_what_is_refused_at_its_publication_has_no_hash(bench: Any) -> None:
    bench.serve()
    bench.send("new")
    assert bench.send("new", bench.form(8)).status_code == 409
    told = bench.client.get("/v1/adapters/new").json()
    assert (told["upload"]["state"], told["upload"]["hash"]) == ("refused", None)


def test_a_check_whose_server_has_ended_keeps_nothing(bench: Any) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    class Orphan(type(bench).inside):  # type: ignore[misc]
        def __call__(self, task: Any) -> Any:
            return super().__call__(replace(task, server=ended.pid))

    bench.serve(checker=Orphan())
    before = contents(bench.pool.path)
    assert bench.send("new").status_code == 400
    assert contents(bench.pool.path) == before


def test_what_waits_when_the_server_ends_is_refused_and_its_texts_are_gone(bench: Any) -> None:
    bench.serve(checker=Broken("import time; time.sleep(60)"))
    sent = [bench.client.post("/v1/adapters", files=bench.form(s), data={"name": f"n{s}"}).json() for s in (7, 8)]
    bench.uploads.close()
    assert bench.left() == []
    for each in sent:
        assert bench.state.upload(each["id"]).state == "refused"
    assert holders(bench.pool.path) == []


def test_texts_are_kept_nowhere(bench: Any) -> None:
    bench.serve()
    texts = [f"Confidential{i} patient-{i} said sesquipedalian" for i in range(8)]
    assert bench.send("new", bench.form(samples="\n".join(texts).encode())).status_code == 201
    for path in bench.pool.path.rglob("*"):
        if path.is_file():
            assert b"sesquipedalian" not in path.read_bytes(), path


def test_no_file_of_a_served_pool_is_deleted_and_nothing_is_embedded_anew(bench: Any) -> None:
    pool = Pool.open(bench.pool.path)
    pool.prune()
    bench.serve()
    for change in (pool.prune, lambda: pool.reembed({}, pool.embedder, bench.embedder)):
        with pytest.raises(PoolError, match="is served"):
            change()
    bench.uploads.close()
    pool.prune()


def test_a_change_that_the_server_cannot_serve_is_taken_back(bench: Any) -> None:
    bench.serve()
    view = bench.view
    bench.uploads.publisher.served = lambda: view
    assert bench.send("new").status_code == 400
    assert "new" not in Pool.open(bench.pool.path).names


def test_state_and_uploads_are_for_the_server_alone(bench: Any) -> None:
    bench.serve()
    bench.send("new")
    for path in (bench.pool.path / "serve").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0 or stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0


def test_the_state_may_be_lost(bench: Any) -> None:
    import shutil

    bench.serve()
    bench.send("new")
    bench.uploads.close()
    shutil.rmtree(bench.pool.path / "serve")
    bench.serve()
    assert "new" in bench.names()
    assert bench.client.get("/v1/adapters/new").json()["upload"] is None
    assert bench.client.delete("/v1/adapters/new").status_code == 200


def test_a_process_that_is_held_ready_checks_as_others_do_and_goes_with_the_server(bench: Bench) -> None:
    checker = Checker(pool=bench.pool.path)
    bench.serve(checker=checker)
    for seed, name in ((7, "one"), (8, "two")):
        assert bench.send(name, bench.form(seed)).status_code == 201
    assert bench.send("bad", bench.form(9, config=bench.config(peft_type="PICKLED"))).status_code == 400
    held = checker._next
    assert held is not None
    bench.uploads.close()
    assert held.poll() is not None
    assert bench.names() == ["alpha", "beta", "gamma", "one", "two"]


@pytest.mark.parametrize(("rate", "taken"), [(100, True), (1 << 30, False)])
def test_an_upload_that_goes_on_is_taken_however_long_it_takes(tmp_path: Path, rate: int, taken: bool) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for name in ("config", "weights", "samples"):
            yield f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\nx\r\n'.encode()
            await asyncio.sleep(0.1)
        yield b"--edge--\r\n"

    limits = Limits(deadline=0.15, upload_rate=rate)
    coming = receive(slowly(), "multipart/form-data; boundary=edge", tmp_path, limits)
    if taken:
        assert set(asyncio.run(coming).files) == {"config", "weights", "samples"}
    else:
        with pytest.raises(LateError):
            asyncio.run(coming)
