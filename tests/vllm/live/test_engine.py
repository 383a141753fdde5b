"""Compositions in vLLM's engine: answers are the library's, whatever shares a batch, a slot or a cached prefix."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest

from hilora import Planner, get_method
from hilora.errors import InputError
from hilora.gateway.parts import Part
from hilora.vllm import Composition, params, route
from hilora.vllm.folders import Folders
from hilora.vllm.front import Front
from hilora.vllm.places import Places
from hilora.vllm.private import names
from hilora.vllm.private.hooks import composition_of, contents_of
from hilora.vllm.private.layers import Wrapped
from hilora.vllm.wire import FIELD, WireError, encode
from tests.vllm.live.compare import CLOSE, Case, Found, compare
from tests.vllm.live.conftest import World


def assert_equal(found: Found, capsys: pytest.CaptureFixture[str], what: str) -> None:
    """At least 999 in 1000 answers; and where one differs, two candidates were as good as each other."""
    with capsys.disabled():
        print(f"\n{what}: {found}")
    assert found.equal.total() >= 0.999 * found.asked.total()
    assert all(gap < CLOSE for gap in found.gaps)


def answer(llm: Any, case: Case, sampling: Any, **more: Any) -> Any:
    return llm.generate([{"prompt_token_ids": case.ids}], sampling, use_tqdm=False, **more)[0]


def test_the_installed_vllm_is_the_one_that_is_hooked(llm: Any) -> None:
    names.verify()
    for name in names.HOOKED:
        owner, attribute = names._owner(name)
        assert hasattr(getattr(owner, attribute), "of_hilora"), name


def test_what_is_read_of_vllms_objects_is_there(llm: Any) -> None:
    core = llm.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    manager = runner.lora_manager._adapter_manager
    layers = [layer for layer in manager.modules.values() if hasattr(layer, "hilora")]
    found = {
        "scheduler": core.scheduler,
        "runner": runner,
        "input batch": runner.input_batch,
        "LoRA manager": manager,
        "LoRA layer": layers[0],
        "wrapper of kernels": layers[0].punica_wrapper,
        "input processor": llm.llm_engine.input_processor,
        "LoRA config": core.scheduler.lora_config,
    }
    assert set(found) == set(names.READ)
    absent = [(key, name) for key in found for name in names.READ[key].split() if not hasattr(found[key], name)]
    assert absent == []
    assert len(layers) == 4 * 3  # q, k and v are one of vLLM's, gate and up another


def test_answers_are_the_librarys_in_one_batch(llm: Any, each: list[Case], capsys: Any) -> None:
    slots = llm.llm_engine.vllm_config.lora_config.max_loras
    assert len(contents_of([composition_of(case.params) for case in each])) > slots
    assert len({case.want for case in each}) > len(each) // 4
    assert_equal(compare(llm, each), capsys, "one batch")
    again = compare(llm, each)  # each from what the cache kept of the same prompt under the same composition
    assert_equal(again, capsys, "from the cache")
    assert again.cached > 0


def test_a_prompt_under_another_composition_shares_no_prefix(llm: Any, each: list[Case]) -> None:
    llm.reset_prefix_cache()
    found = {composition_of(case.params): case for case in each if case.ids == each[0].ids and case.lora is None}
    assert len(found) > 4
    cached = [answer(llm, case, case.params).num_cached_tokens for case in found.values()]
    again = [answer(llm, case, case.params).num_cached_tokens for case in found.values()]
    assert cached == [0] * len(found)
    assert all(again)


def test_rows_of_the_base_and_of_vllms_own_loras_stay_what_they_are(llm: Any, each: list[Case], capsys: Any) -> None:
    """On the CPU vLLM gives rows without a LoRA the last slot's weights, where others have one."""
    llm.reset_prefix_cache()
    some = [case for case in each if case.kind in ("base", "stock")]
    assert_equal(compare(llm, some), capsys, "the base and vLLM's own LoRAs")


def test_the_way_of_gpus_gives_the_same(llm: Any, each: list[Case], capsys: Any) -> None:
    """One of vLLM's wrappers of kernels for each place; here these are its kernels for the CPU."""

    def change(model: Any) -> list[Any]:
        from vllm.lora.punica_wrapper import get_punica_wrapper

        manager, before = model.lora_manager, model.lora_manager.hilora
        num, tokens = before.places.num_places, manager.max_num_batched_tokens
        wrappers = [
            get_punica_wrapper(tokens, max_batches=manager.max_num_seqs, device=manager.device) for _ in range(num)
        ]
        work = Wrapped(Places(num, tokens), wrappers, manager.lora_slots + 1, manager.vocab_size)
        put(model, work)
        return [before]

    def put(model: Any, work: Any) -> None:
        model.lora_manager.hilora = work
        for layer in model.lora_manager.modules.values():
            if hasattr(layer, "hilora"):
                layer.hilora = work

    llm.reset_prefix_cache()
    ((before,),) = llm.apply_model(change)
    try:
        assert_equal(compare(llm, each), capsys, "a wrapper for each place")
    finally:
        llm.apply_model(lambda model: put(model, before))


def test_many_compositions_share_a_batch(llm: Any, world: World, each: list[Case]) -> None:
    """Every row has one of its own, and adapters lie in vLLM's slots once."""
    llm.reset_prefix_cache()
    entries = world.pool.entries[:6]
    own = [
        Composition(tuple(Part(entry.hash, 0.1 + 0.02 * row, 1 + row % entry.rank, entry.rank) for entry in entries))
        for row in range(32)
    ]
    ids = [{"prompt_token_ids": each[0].ids}] * 32
    together = llm.generate(ids, [params(one, max_tokens=8, temperature=0) for one in own], use_tqdm=False)
    assert len({tuple(output.outputs[0].token_ids) for output in together}) > 8
    llm.reset_prefix_cache()
    for row in (0, 7, 31):
        (alone,) = llm.generate(ids[:1], params(own[row], max_tokens=8, temperature=0), use_tqdm=False)
        assert alone.outputs[0].token_ids == together[row].outputs[0].token_ids


def test_what_cannot_be_served_is_refused_and_the_engine_goes_on(llm: Any, world: World, each: list[Case]) -> None:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    entry = world.pool.entries[0]
    good = Part(entry.hash, 1.0, 1, entry.rank)
    for composition, said in (
        (Composition((Part("0" * 64, 1.0, 1, 1),)), "not in the pool"),
        (Composition((Part(entry.hash, 1.0, 1, 9),)), "--max-lora-rank"),
        (Composition(tuple(Part(f"{n:064x}", 1.0, 1, 1) for n in range(7))), "--max-loras 7"),
        (Composition((replace(good, rocs=0),)), "ROCs"),
        (Composition((replace(good, factor=float("nan")),)), "finite"),
    ):
        with pytest.raises(WireError, match=said):
            answer(llm, each[0], params(composition, max_tokens=1))
    with pytest.raises(WireError, match=r"hilora\.vllm\.params"):
        answer(llm, each[0], SamplingParams(max_tokens=1, extra_args={FIELD: encode(Composition((good,)))}))
    lora = LoRARequest("one", 77, "/nowhere")
    with pytest.raises(WireError, match="Leave one of them out"):
        answer(llm, each[0], params(Composition((good,)), max_tokens=1), lora_request=lora)
    assert compare(llm, each[:3]).gaps == []


def test_a_method_that_weighs_token_by_token_is_refused(world: World) -> None:
    planner = Planner(world.pool, get_method("fusion"), world.embedder)
    with pytest.raises(InputError, match="fixed sum"):
        route(planner, ["aba"])


def test_an_adapter_that_is_gone_fails_its_own_request_alone(llm: Any, world: World, each: list[Case]) -> None:
    folders = Folders(world.pool.path)
    entry = world.pool.entries[-1]
    content = f"canonical {entry.hash}"
    gone = Composition((Part(content, 1.0, 1, entry.rank),))
    llm.llm_engine.add_request("gone", {"prompt_token_ids": each[0].ids}, params(gone, max_tokens=4))
    shutil.rmtree(folders.path(content))
    other = next(case for case in each if case.kind == "selection")
    llm.llm_engine.add_request("other", {"prompt_token_ids": other.ids}, other.params)
    ended = {}
    while llm.llm_engine.has_unfinished_requests():
        ended |= {output.request_id: output.outputs[0] for output in llm.llm_engine.step() if output.finished}
    assert ended["gone"].finish_reason == "error"
    assert ended["other"].text.strip() == other.want.strip()
    Front(folders, 8).check(gone, 8, 8)  # from the pool it comes again
    assert answer(llm, each[0], params(gone, max_tokens=4)).outputs[0].finish_reason == "length"


def test_parameters_that_are_used_again_are_not_changed(llm: Any, each: list[Case]) -> None:
    case = next(case for case in each if composition_of(case.params))
    before = dict(case.params.extra_args)
    assert [answer(llm, case, case.params).outputs[0].text for _ in range(2)] == [case.want] * 2
    assert case.params.extra_args == before


def test_samples_of_one_prompt_all_use_its_composition(llm: Any, each: list[Case]) -> None:
    case = next(case for case in each if case.kind == "mixture")
    sampling = params(composition_of(case.params), n=3, max_tokens=6, temperature=1e-3, seed=1)
    texts = [output.text for output in answer(llm, case, sampling).outputs]
    assert texts == [case.want[:6]] * 3
