"""Routing over pools of LoRA adapters: each prompt is served by the adapters that fit it.

from hilora import HiLoRA

router = HiLoRA.from_pretrained(pool="pools/flan-mini")
for answer in router.generate(["..."]):
    print(answer.text, answer.adapters, answer.rocs)
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Compile": "hilora.engine.compiled.options",
    "Completion": "hilora.types",
    "Embedder": "hilora.base.embed",
    "HiLoRA": "hilora.engine.generate",
    "HiloraError": "hilora.errors",
    "METHODS": "hilora.methods.table",
    "Planner": "hilora.planner",
    "Pool": "hilora.pool.pool",
    "get_method": "hilora.methods.lookup",
}

__all__ = ["METHODS", "Compile", "Completion", "Embedder", "HiLoRA", "HiloraError", "Planner", "Pool", "get_method"]

if TYPE_CHECKING:
    from hilora.base.embed import Embedder
    from hilora.engine.compiled.options import Compile
    from hilora.engine.generate import HiLoRA
    from hilora.errors import HiloraError
    from hilora.methods.lookup import get_method
    from hilora.methods.table import METHODS
    from hilora.planner import Planner
    from hilora.pool.pool import Pool
    from hilora.types import Completion


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


def __getattr__(name: str) -> Any:
    """Import on first use: `import hilora` alone loads neither torch nor transformers."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hilora' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
