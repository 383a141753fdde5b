"""The default embedder under other runtimes than torch: ONNX Runtime and OpenVINO, where they are installed.

    pip install onnx onnxruntime onnxscript openvino

The same tokens go in and hidden states come out; int8 is ONNX Runtime's dynamic quantisation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hilora.base.bert import Reader
from hilora.base.embed import DEFAULT_EMBEDDER, Embedder, StandIn, embedder_path
from hilora.base.encoders import longest_text, pooled, pooling_of

Run = Callable[[Tensor, Tensor], Tensor]
"""Token ids and mask (text, seq), int64 -> hidden states (text, seq, dim)."""


class Other(StandIn):
    """The default embedder with its encoder run by something else."""

    def __init__(self, like: Embedder, run: Run) -> None:
        super().__init__(like)
        path = embedder_path(DEFAULT_EMBEDDER)
        read, pooling = Reader.open(path, longest_text(path) or 512, 0, "cpu"), pooling_of(path) or "mean"

        def encode(texts: list[str]) -> Tensor:
            ids, mask = read(texts)
            return pooled(run(ids, mask.long()), mask, pooling, normalises=True)

        self._encode = encode


class Hidden(torch.nn.Module):
    """transformers' model, with the hidden states alone."""

    def __init__(self) -> None:
        from transformers import AutoModel

        super().__init__()
        path = embedder_path(DEFAULT_EMBEDDER)
        self.model = AutoModel.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(text, seq, dim)."""
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def runtimes(folder: Path) -> dict[str, Run]:
    """Name -> the encoder, for what is installed; exported models are written to a folder."""
    example = (torch.tensor([[101, 7592, 102], [101, 2088, 102]]), torch.ones(2, 3, dtype=torch.long))
    found: dict[str, Run] = {}
    if importlib.util.find_spec("onnxruntime"):
        found |= _onnx(folder, example)
    if importlib.util.find_spec("openvino"):
        found |= _openvino(example)
    return found


def _onnx(folder: Path, example: tuple[Tensor, Tensor]) -> dict[str, Run]:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names, path, small = ["input_ids", "attention_mask"], folder / "fp32.onnx", folder / "int8.onnx"
    axes = {name: {0: "text", 1: "seq"} for name in names}
    torch.onnx.export(Hidden(), example, path, input_names=names, dynamic_axes=axes, dynamo=False)
    quantize_dynamic(path, small, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()

    def runner(file: Path) -> Run:
        session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda ids, mask: torch.from_numpy(
            session.run(None, dict(zip(names, (ids.numpy(), mask.numpy()), strict=True)))[0]
        )

    return {"onnx fp32": runner(path), "onnx int8": runner(small)}


def _openvino(example: tuple[Tensor, Tensor]) -> dict[str, Run]:
    import openvino

    shapes = [(name, [-1, -1], openvino.Type.i64) for name in ("input_ids", "attention_mask")]
    with torch.no_grad():
        model = openvino.convert_model(Hidden(), example_input=example, input=shapes)

    def runner(dtype: str) -> Run:
        how = {"INFERENCE_PRECISION_HINT": dtype, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = openvino.Core().compile_model(model, "CPU", how)
        return lambda ids, mask: torch.from_numpy(compiled((ids.numpy(), mask.numpy()))[0])

    return {f"openvino {name}": runner(dtype) for name, dtype in (("fp32", "f32"), ("bf16", "bf16"))}
