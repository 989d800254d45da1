"""One example of each body, shown in the OpenAPI document; tests hold them against the models."""

from typing import Any

JOB_ID = "job_019ab2f0c4d17c3e8a51d2f6b7e80913"
CLONED_ID = "job_019ab2e9d4d17c3e8a51d2f6b7e80912"
MOMENT = "2026-11-25T16:20:41.204117Z"
LATER = "2026-11-25T16:23:05.770012Z"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

SUBMISSION: dict[str, Any] = {
    "name": "SmolLM2 after layer 10",
    "tags": ["smollm2"],
    "preset": "demo",
    "seed": 1,
    "sae": {"k": 24},
}
CLONE: dict[str, Any] = {"clone": JOB_ID, "set": {"sae": {"k": 64}}, "name": "the same, less sparse"}
SUBMISSIONS: list[Any] = [SUBMISSION, {"preset": "demo", "chains": 3}, CLONE]
"""Bodies of POST /distillations: one job; a group of three chains; another job with one change."""

CORE_CYCLE: dict[str, Any] = {"job_id": JOB_ID, "cycle_index": 2}
TRAINING_SUBMISSIONS: list[Any] = [
    {"core": {"kind": "selected", "cycle": {"job_id": JOB_ID}}, "sae": {"k": 64}},
    {"core": {"kind": "none", "width_of": CORE_CYCLE}, "name": "as wide, without a core"},
    {
        "sweep": {
            "k": [16, 32, 64],
            "core": [{"kind": kind, "cycle": CORE_CYCLE} for kind in ("selected", "energy", "frequent")],
        }
    },
    {"clone": JOB_ID, "set": {"seed": 2}},
]
"""Bodies of POST /trainings: around a job's last core at another k; a control; nine jobs; another seed."""

CHANGES: dict[str, Any] = {"name": "the good one", "tags": ["smollm2", "keep"], "priority": "high"}
"""Body of PATCH /jobs/{id}."""

CONFIG: dict[str, Any] = {
    "n_cycles": 3,
    "seed": 1,
    "model": {"source": "builtin", "name": "smollm2-135m"},
    "activations": {"layer": 10},
    "sae": {"n_latents": 1024, "k": 24, "block_widths": [128, 256, 512, 768]},
}
"""Shortened: every setting is there."""

LATEST: dict[str, Any] = {
    "step": 120,
    "n_steps": 540,
    "n_tokens": 61440,
    "n_tokens_total": 276480,
    "loss": 0.61,
    "l0": 31.8,
    "explained_variance": 0.71,
    "tokens_per_s": 5120.0,
    "time_left_s": 42.0,
}

PROGRESS: dict[str, Any] = {
    "n_cycles": 3,
    "n_cycles_done": 1,
    "cycle_index": 1,
    "attempt_number": 1,
    "phase": "training",
    "latest": LATEST,
    "time_left_s": 131.5,
    "queue_position": None,
    "starts_in_s": None,
    "queue_seen_at": None,
}

SUMMARY: dict[str, Any] = {
    "id": JOB_ID,
    "kind": "distillation",
    "owner": "local",
    "name": "SmolLM2 after layer 10",
    "tags": ["smollm2"],
    "notes": None,
    "priority": "normal",
    "state": "running",
    "state_reason": None,
    "error": None,
    "held": False,
    "group_id": None,
    "preset": "demo",
    "model": "smollm2-135m",
    "run": 1,
    "version": 37,
    "spec_version": 2,
    "created_at": MOMENT,
    "started_at": MOMENT,
    "finished_at": None,
    "expires_at": None,
    "stored_bytes": 4_890_112,
    "progress": PROGRESS,
    "links": {"self": f"/jobs/{JOB_ID}", "lineage": f"/distillations/{JOB_ID}/lineage"},
}

IN_USE = {
    "model_revision": "2f3e5f2b6f8a0d4c9b1e7a6d5c4b3a29181706f5e4d3c2b1a09f8e7d6c5b4a39",
    "model_type": "llama",
    "model_dtype": "float32",
    "attention": "sdpa",
    "device": "cpu",
    "path": "model.layers.10",
    "hook": "resid_post",
    "layer": 10,
    "n_layers": 30,
    "d_model": 576,
}
CHANGED: dict[str, Any] = {"sae.k": {"from": 32, "to": 24}}
ORIGIN: dict[str, Any] = {"cloned_from": CLONED_ID, "changes": CHANGED, "identical_to": None}
JOB = {**SUMMARY, "config": CONFIG, "in_use": IN_USE, **ORIGIN}
REUSED = {**JOB, "state": "succeeded", "reused": True}
JOB_LIST: dict[str, Any] = {"items": [SUMMARY], "next_cursor": None}

DRY_RUN: dict[str, Any] = {
    "config": CONFIG,
    "max_core": 240,
    "cycles": [
        {
            "cycle_index": 0,
            "is_exact": True,
            "n_core": 0,
            "prefix_widths": [128, 256, 512, 768, 1024],
            "stored_bytes": 5_461_730,
            "gpu_hours": None,
        },
        {
            "cycle_index": 1,
            "is_exact": False,
            "n_core": 128,
            "prefix_widths": [256, 384, 640, 896, 1024],
            "stored_bytes": 6_203_114,
            "gpu_hours": None,
        },
    ],
    "memory": {"value": 2_565_092_127, "unit": "bytes", "source": "Computed from what the trainer keeps ..."},
    "host_memory": {"value": None, "unit": "bytes", "source": "The device is the machine's CPU: ..."},
    "time": {"value": None, "unit": "s", "source": "No estimate: ..."},
    "gpu_hours": {"value": None, "unit": "h", "source": "No estimate: ..."},
    "retention_days": None,
    "identical_to": None,
}

DRY_RUN_GROUP: dict[str, Any] = {"n_jobs": 1, "jobs": [DRY_RUN]}

CYCLE: dict[str, Any] = {
    "index": 0,
    "state": "succeeded",
    "state_reason": None,
    "error": None,
    "n_attempts": 1,
    "resource_class": "cpu",
    "queued_at": MOMENT,
    "started_at": MOMENT,
    "finished_at": LATER,
    "input_core_id": None,
    "output_core_id": "core_019ab2f30b1e7d41b0a3c4d5e6f70812",
    "stored_bytes": 4_890_112,
    "metrics": {"n_candidates": 128, "n_core": 99, "n_new": 99, "explained_variance": 0.74, "l0": 31.9},
    "code_version": "72c9ec057e44ac21",
}

CYCLE_LIST: dict[str, Any] = {"items": [CYCLE]}
DISTILLATION: dict[str, Any] = {**JOB, "cycles": [CYCLE], "last_core_id": CYCLE["output_core_id"]}

TRAINING: dict[str, Any] = {
    **JOB,
    "kind": "training",
    "config": {**CONFIG, "core": {"kind": "energy", "cycle": CORE_CYCLE}},
    "cycles": [CYCLE],
    "given": {
        "core_id": "core_019ab2f51d2a7c90a1b2c3d4e5f60718",
        "kind": "energy",
        "seed": None,
        "n_latents": 99,
        "overlap": 0.71,
        "is_weak_control": True,
    },
    "core_id": CYCLE["output_core_id"],
}

FIGURES: dict[str, Any] = {"cycle_index": 2, "explained_variance": 0.74, "l0": 31.9, "n_core": 99}
GROUP: dict[str, Any] = {
    "group_id": "group_019ab2f61d2a7c90a1b2c3d4e5f60718",
    "state": "succeeded",
    "states": {"succeeded": 1},
    "n_cycles": 3,
    "n_cycles_done": 3,
    "stored_bytes": 4_890_112,
    "jobs": [{**SUMMARY, "point": {"k": 24, "seed": 1, "chain_index": 0}, "figures": FIGURES}],
    "match": {
        "job_id": "job_019ab2f7d2a17c3e8a51d2f6b7e80914",
        "cores": [f"{JOB_ID}.2", "job_019ab2f0c5a27c3e8a51d2f6b7e80915.2"],
        "n_latents": [99, 103],
        "decoder_cosine": 0.7,
        "firing_correlation": 0.5,
        "pairs": [{"a": 0, "b": 1, "n_aligned": 40, "n_matches": 12, "best_cosine_random": 0.13}],
        "reproduced": [[f"{JOB_ID}.0.17"], ["job_019ab2f0c5a27c3e8a51d2f6b7e80915.1.40"]],
        "share_reproduced": [0.01, 0.01],
    },
}

EVENT_LIST: dict[str, Any] = {
    "items": [
        {
            "seq": 1,
            "kind": "job_queued",
            "message": "A distillation of 3 cycles was queued.",
            "cycle_index": None,
            "attempt_number": None,
            "data": {"n_cycles": 3},
            "created_at": MOMENT,
        }
    ],
    "after": 1,
}

LOG_LIST: dict[str, Any] = {
    "items": [
        {
            "cycle_index": 0,
            "attempt_number": 1,
            "attempt_id": "attempt_019ab2f0d0127b6f9e2a1b3c4d5e6f70",
            "worker_id": "worker_019ab2e9a5c37f10b1c2d3e4f5061728",
            "celery_task_id": "4d5c0f7e-9f0b-4b8a-9a1e-0f3c2b1a0d9e",
            "phase": "uploading",
            "outcome": "succeeded",
            "error": None,
            "opened_at": MOMENT,
            "closed_at": LATER,
            "text": "",
        }
    ]
}

UPLOAD_REQUEST: dict[str, Any] = {"filename": "pile.jsonl.zst", "size_bytes": 731_906_112}
"""Body of POST /uploads."""

UPLOAD_KEY = "uploads/owner_019ab2e1/upload_019ab2f0a3b87c11/pile.jsonl.zst"

UPLOAD: dict[str, Any] = {
    "id": "upload_019ab2f0a3b87c11",
    "key": UPLOAD_KEY,
    "filename": "pile.jsonl.zst",
    "size_bytes": 731_906_112,
    "method": "PUT",
    "url": f"http://127.0.0.1:8333/dmsae/{UPLOAD_KEY}?...",
    "headers": {"Content-Length": "731906112", "If-None-Match": "*"},
    "expires_at": LATER,
    "kept_days": 30,
}

ARTIFACT_LIST: dict[str, Any] = {
    "items": [
        {
            "cycle_index": 0,
            "name": "sae/sae_weights.safetensors",
            "size_bytes": 4729432,
            "sha256": SHA256,
            "url": f"http://127.0.0.1:8333/dmsae/jobs/{JOB_ID}/cycles/0/attempts/1-7/sae/sae_weights.safetensors?...",
        }
    ]
}

IDENTITY: dict[str, Any] = {
    "latent_id": f"{JOB_ID}.0.17",
    "origin_job_id": JOB_ID,
    "origin_cycle": 0,
    "origin_index": 17,
    "origin_kind": "learned",
}

PLACE: dict[str, Any] = {
    "core_index": 4,
    "sae_index": 9,
    "parent_core_index": 9,
    "rank": 2,
    "score": 0.031,
    "score_se": 0.002,
    "share": 0.024,
    "encoder_norm": 1.12,
    "density": 0.18,
    "decoder_cosine": 0.97,
    "firing_jaccard": 0.88,
    "is_borderline": False,
}

CORE: dict[str, Any] = {
    "core_id": "core_019ab2f51d2a7c90a1b2c3d4e5f60718",
    "cycle_index": 1,
    "n_latents": 121,
    "min_selected": 2,
    "items": [{**IDENTITY, **PLACE, "times_selected": 2}],
    "next_cursor": None,
}

LINEAGE: dict[str, Any] = {
    "items": [
        {
            **IDENTITY,
            "times_selected": 2,
            "last_cycle": 1,
            "dropped_at": 2,
            "last_share": 0.024,
            "max_share": 0.031,
            "path": [
                {
                    **PLACE,
                    "cycle_index": 0,
                    "core_index": 9,
                    "sae_index": 17,
                    "parent_core_index": None,
                    "decoder_cosine": None,
                    "firing_jaccard": None,
                },
                {**PLACE, "cycle_index": 1},
            ],
            "given": None,
        }
    ],
    "next_cursor": None,
}

ORIGINS: dict[str, Any] = {
    "cycles": [0, 1],
    "origins": [{"job_id": JOB_ID, "cycle_index": 0}, {"job_id": JOB_ID, "cycle_index": 1}],
    "matrix": [[99, 0], [88, 33]],
}

READINESS: dict[str, Any] = {
    "status": "failed",
    "parts": {
        "postgres": {"status": "ok", "detail": None},
        "migrations": {"status": "ok", "detail": None},
        "redis": {"status": "failed", "detail": "The broker does not answer."},
        "s3": {"status": "ok", "detail": None},
    },
}

ALIVE: dict[str, Any] = {"status": "ok"}

PROBLEM: dict[str, Any] = {
    "type": "urn:dmsae:problem:invalid_config",
    "title": "Unprocessable Content",
    "status": 422,
    "code": "invalid_config",
    "detail": "sae.k = 2000: must be at most n_latents = 1024",
    "request_id": "req_019ab2f0c4d17c3e8a51d2f6b7e80913",
    "param": "sae.k",
    "errors": [
        {"param": "sae.k", "value": 2000, "rule": "must be at most n_latents = 1024", "code": "invalid_value"}
    ],
}
