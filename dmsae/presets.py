"""Which named settings can a request start from?"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "n_cycles": 3,
        "model": {"source": "builtin", "name": "smollm2-135m"},
        "data": {"text": {"source": "builtin", "name": "python-topics"}, "split": [0.8, 0.1, 0.1]},
        "activations": {"layer": 10},
        "sae": {"n_latents": 1024, "k": 32, "block_widths": [128, 256, 512, 768]},
        "training": {"batch_tokens": 512, "lr": 3e-3, "epochs": 3},
        "attribution": {"n_tokens": 8192, "ablation_tokens": 512, "ablation_latents": 16},
        "selection": {"max_core": 240},
        "evaluation": {"n_tokens": 2048},
    },
    "gemma-2-2b-l12": {
        "n_cycles": 8,
        "device": "cuda",
        "model": {
            "source": "hub",
            "id": "google/gemma-2-2b",
            "revision": "c5ebcd40d208330abc697524c919956e692655cf",
        },
        "data": {
            "text": {
                "source": "hub",
                "id": "monology/pile-uncopyrighted",
                "revision": "3be90335b66f24456a5d6659d9c8d208c0357119",
                "files": ["train/*.jsonl.zst"],
            },
            "context_length": 1024,
            "packing": "packed",
            "prepend_bos": True,
        },
        "activations": {"layer": 12, "model_dtype": "bfloat16"},
        "sae": {"n_latents": 65_536, "k": 320, "block_widths": [2048, 6144, 14_336, 30_720]},
        "training": {"n_tokens": 500_000_000, "batch_tokens": 2048, "lr": 3e-4},
    },
}
"""Named overrides, all ours (METHOD, Presets)."""
