"""Laws of where adapters come from: nothing pickled is fetched or read, and what is wrong is told with its remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import save_file
from torch import ones

from hilora.errors import AdapterError, InputError, PoolError
from hilora.pool.peft import read_adapter
from hilora.pool.source import adapter_folder, find_pool, read_samples

Fetched = list[str]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fetched]:
    """A repository on the Hub: the files that it lists, of which some can be fetched; returns what was asked for."""

    def make(listed: list[str] | Exception, config: dict[str, Any], *files: str) -> Fetched:
        asked: Fetched = []
        folder = tmp_path / "snapshot"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config))
        for file in files:
            (folder / file).write_bytes(b"")

        def fetch(_: str, allow_patterns: list[str]) -> str:
            asked.extend(allow_patterns)
            return str(folder)

        def listing(_: str) -> list[str]:
            if isinstance(listed, Exception):
                raise listed
            return listed

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", listing)
        return asked

    return make


LORA = {"peft_type": "LORA", "r": 2}


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (["README.md", "adapter_model.bin", "optimizer.pt"], r"pickle \('adapter_model\.bin'\).*safe_serialization"),
        (["README.md"], r"has no adapter_model\.safetensors and no"),
        (huggingface_hub.errors.OfflineModeIsEnabled("offline\nmode"), r"cannot be had.*pickle.*safe_serialization"),
        (huggingface_hub.errors.HTTPError("no network"), r"cannot be had \(no network\).*pickle"),
    ],
    ids=["pickle", "nothing", "offline", "no network"],
)
def test_a_repository_without_safetensors_says_why_and_no_pickle_is_fetched(
    listed: list[str] | Exception, words: str, hub: Callable[..., Fetched]
) -> None:
    asked = hub(listed, LORA)
    with pytest.raises(AdapterError, match=words) as caught:
        adapter_folder("someone/old-lora")
    assert "\n" not in str(caught.value)
    assert "'someone/old-lora'" in str(caught.value)
    assert asked
    assert not any(pattern.endswith((".bin", ".pt", "*")) and "safetensors" not in pattern for pattern in asked)


def test_a_repository_with_safetensors_is_taken_without_a_look_at_its_list(hub: Callable[..., Fetched]) -> None:
    hub(AssertionError("asked"), LORA, "adapter_model.safetensors")
    assert adapter_folder("someone/lora").name == "snapshot"


MLX: dict[str, tuple[dict[str, Any] | None, list[str]]] = {
    "of today": ({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}, "model": "m"}, ["adapters.safetensors"]),
    "its config alone": ({"lora_layers": 16, "lora_parameters": {"rank": 8, "scale": 20.0}}, []),
    "its weights alone": (None, ["adapters.safetensors"]),
    "of old": ({"adapter_path": "adapters", "lora_layers": 4}, ["adapters.npz"]),
}


@pytest.mark.parametrize("kind", MLX)
def test_an_mlx_folder_is_called_so_and_how_to_convert_it_is_said(kind: str, tmp_path: Path) -> None:
    config, files = MLX[kind]
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    for file in files:
        save_file({"model.layers.0.self_attn.q_proj.lora_a": ones(16, 8)}, tmp_path / file)
    with pytest.raises(AdapterError, match=r"MLX.*transposed.*lora_alpha") as caught:
        read_adapter(tmp_path, name="a", sites={})
    assert "\n" not in str(caught.value)


def test_an_mlx_repository_is_called_so_and_not_one_without_weights(hub: Callable[..., Fetched]) -> None:
    hub(["adapters.safetensors"], {"fine_tune_type": "lora", "lora_parameters": {"rank": 8}})
    with pytest.raises(AdapterError, match="MLX"):
        read_adapter(adapter_folder("someone/mlx"), name="a", sites={})


def test_a_pointer_in_the_place_of_an_adapters_weights_is_called_so(tiny: Any, tmp_path: Path) -> None:
    folder = tiny.adapter(tmp_path, {"q_proj": (16, 16)})
    (folder / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 99\n")
    with pytest.raises(AdapterError, match=r"Git LFS pointer.*git lfs pull"):
        read_adapter(folder, name="a", sites={"q_proj": (16, 16)})


def test_half_a_character_in_samples_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text('{"inputs": "whole \\ud83d\\ude00"}\n\n{"inputs": "half an emoji \\ud83d here"}\n')
    with pytest.raises(InputError, match="line 3 has half a character") as caught:
        read_samples(file)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


# --- pools -------------------------------------------------------------------------------------------------


def pool_at(path: Path) -> Path:
    """What is taken for a pool until it is opened."""
    path.mkdir(parents=True)
    (path / "pool.json").write_text("{}")
    return path


def test_the_default_pool_is_ones_own_then_the_installed_then_the_clones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "pool").mkdir(parents=True)  # a folder of that name, and no pool
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(PoolError) as caught:
        find_pool()
    told = ("./pool", "hilora-flan-mini", "pools/flan-mini", "pip install ./pools/flan-mini", "hilora pool add")
    assert all(each in str(caught.value) for each in told)
    assert "\n" not in str(caught.value)
    pool_at(Path("pools/flan-mini"))
    assert find_pool() == find_pool("flan-mini") == Path("pools/flan-mini")
    installed = pool_at(tmp_path / "site" / "hilora_flan_mini")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find_pool() == find_pool("flan-mini") == installed
    (Path("pool") / "pool.json").write_text("{}")
    assert find_pool() == Path("pool")
    assert find_pool("flan-mini") == installed


def test_a_pool_that_is_named_is_the_one_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pool_at(Path("pool"))
    pool_at(Path("mine-2.0"))
    pool_at(Path("pools/other"))
    for named in ("mine-2.0", "./nowhere", "nowhere", "no.where", tmp_path / "nowhere", "pools/other"):
        assert find_pool(named) == Path(named)
    assert find_pool("other") == Path("pools/other")
    with pytest.raises(PoolError, match="There is no flan-mini: its wheel"):
        find_pool("flan-mini")
