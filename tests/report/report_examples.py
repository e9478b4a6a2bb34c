"""Reports to lay out: a passed run with everything in it, a failed one, and one with only what must be there."""

from __future__ import annotations

import math
import random
from typing import Any

DROPPED = tuple(f"{block}.attn" for block in (8, 11, 12, 13, 15, 17, 18, 20, 21, 22, 24))
DROPPED += tuple(f"{block}.mlp" for block in (11, 13, 18, 19, 21, 23, 26))
TAGS = ("ART", "DATE", "EVENT", "LOC", "MONEY", "ORG", "PER", "PRODUCT", "TIME")


def metric(value: float, half: float, unit: str) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "unit": unit}


def row(name: str, f1: float, accuracy: float, p50: float, count: int, links: int) -> dict[str, Any]:
    return {
        "name": name,
        "metrics": {"entity_f1": metric(f1, 0.8134, "points"), "token_accuracy": metric(accuracy, 0.21, "points")},
        "latency_ms": {"p50": p50, "p95": p50 * 1.083},
        "throughput": 1000 / p50,
        "throughput_unit": "sentences/s",
        "parameters": count,
        "bytes": count * 2,
        "links": links,
    }


def scores(draw: random.Random, label: str, loss: float) -> dict[str, Any]:
    precision, recall = 0.93 - loss - 0.2 * draw.random(), 0.92 - loss - 0.2 * draw.random()
    f1 = 2 * precision * recall / (precision + recall)
    return {"label": label, "precision": precision, "recall": recall, "f1": f1, "support": len(label) * 173}


def tag_table(loss: float) -> list[dict[str, Any]]:
    draw = random.Random(7)
    return [scores(draw, label, loss * draw.random()) for label in (*TAGS, "micro avg", "macro avg", "weighted avg")]


def frontier() -> list[dict[str, Any]]:
    original = {"method": "original", "stage": None, "speedup": 1.0, "latency_ms": 21.94, "quality": 0.0, "links": 60}
    points: list[dict[str, Any]] = [original]
    for method, scale in (("refine", 1.0), ("dp", 1.5), ("greedy", 1.9), ("one-shot", 4.2), ("cosine", 19.0)):
        for links, speedup in ((52, 1.19), (46, 1.5), (42, 1.94), (38, 2.35)):
            harm = scale * 0.0045 * math.exp(0.22 * (60 - links)) * (1.02 if method == "dp" and links == 52 else 1)
            exact = speedup * (1 + 0.012 * scale / 10)
            points.append(
                {"method": method, "stage": "before recovery", "speedup": exact, "latency_ms": 21.94 / exact}
                | {"quality": harm, "low": harm * 0.9, "high": harm * 1.12, "links": links, "chosen": False}
            )
    chosen: dict[str, Any] = {"method": "refine", "speedup": 2.13, "latency_ms": 10.3, "links": 42, "chosen": True}
    points.append({**chosen, "stage": "before recovery", "quality": 0.262, "low": 0.251, "high": 0.274})
    points.append({**chosen, "stage": "after recovery", "quality": 0.0312, "low": 0.0296, "high": 0.0331})
    return points


def costs() -> list[dict[str, Any]]:
    draw = random.Random(3)
    entries = []
    for block in range(30):
        for kind, time in (("attn", 213.0), ("mlp", 341.0)):
            dear = 2.5 if block in (0, 1, 29) else 0.006
            cost = dear * math.exp(draw.gauss(0, 0.9)) * (0.3 if f"{block}.{kind}" in DROPPED else 1.0)
            entries.append({"links": [f"{block}.{kind}"], "cost": cost, "time_us": time + draw.gauss(0, 6)})
    return entries


def full_report() -> dict[str, Any]:
    """A passed run on a model of 30 blocks: 18 links dropped, nine entity types, every section there."""
    names = [f"{block}.{kind}" for block in range(30) for kind in ("attn", "mlp")]
    choices = [{"link": name, "action": "drop" if name in DROPPED else "keep", "norm": None} for name in names]
    return {
        "title": "bert-30 on OntoWire, token classification",
        "verdict": "passed",
        "headline": "2.13x faster, entity F1 -0.31 points [-0.88, 0.27], within the margin of 1.0",
        "certificate": {"metric": "entity_f1", "difference": -0.3127, "low": -0.8843, "high": 0.2719, "margin": 1.0}
        | {"n": 3453, "unit": "points", "passed": True, "more_examples": None, "higher_is_better": True},
        "speedup": {"value": 2.1312, "low": 2.0871, "high": 2.1764, "target": 2.0}
        | {"shape": {"batch": 1, "tokens": 128}, "what": "passes, torch backend, bfloat16"}
        | {"aa": {"value": 1.0021, "low": 0.9934, "high": 1.0112}},
        "rows": [
            row("original", 88.4127, 97.213, 21.94, 134_515_008, 60),
            row("shortened", 79.3318, 94.871, 10.31, 98_221_056, 42),
            row("recovered", 88.1, 97.104, 10.295, 98_221_056, 42),
        ],
        "primary_metric": {"name": "entity_f1", "label": "entity F1", "unit": "points", "higher_is_better": True},
        "plan": {"num_blocks": 30, "method": "refine", "choices": choices}
        | {"origin": {"budget_us": 10970.0, "rounds": 5, "predicted_cost": 0.2581}},
        "costs": costs(),
        "frontier": frontier(),
        "frontier_quality": {"label": "KL to the original, nats per token", "higher_is_better": False},
        "tables": [{"title": "Entities by type", "before": tag_table(0.0), "after": tag_table(0.012)}],
        "samples": [
            {
                "prompt": "Angela Merkel met the board of Siemens in Munich on 3 May.",
                "original": "Angela Merkel PER, Siemens ORG, Munich LOC, 3 May DATE",
                "changed": "Angela Merkel PER, Siemens ORG, Munich LOC, May DATE",
            }
        ],
        "machine": {"cpu": "Xeon 8481C", "cores": 2, "gpu": None, "torch": "2.6.0", "threads": 2},
        "recipe": {
            "task": "token-classification",
            "speedup": 2.0,
            "margin": 1.0,
            "training": {"epochs": 3, "lr": 5e-5},
        },
        "timings": {"score": 48.2, "search": 3.71, "shorten": 0.4, "recover": 1312.0, "evaluate": 61.0},
        "seconds": 1431.6,
        "command": "chinchilla compress bert-30 --task token-classification --data ontowire --speedup 2 -o out",
        "notes": ["Calibration data shares no document with the test data.", "Two of 3,455 sentences were too long."],
        "created": "2025-11-23T14:05:00+00:00",
    }


def failed_report() -> dict[str, Any]:
    """A language model whose perplexity rose too much, in percent, lower is better, the target missed."""
    report = full_report()
    for each, value in zip(report["rows"], (14.213, 19.872, 14.624), strict=True):
        each["metrics"] = {"perplexity": metric(value, 0.31, "")}
        each["throughput_unit"] = "tokens/s"
    report |= {
        "title": "SmolLM2-135M, language modeling",
        "verdict": "failed",
        "headline": "1.87x faster, perplexity +2.9 % [1.6, 4.2], not shown to be within the margin of 3.0",
        "primary_metric": {"name": "perplexity", "label": "perplexity", "unit": "", "higher_is_better": False},
        "tables": None,
    }
    report["certificate"] |= {"metric": "perplexity", "difference": 2.892, "low": 1.604, "high": 4.207, "margin": 3.0}
    report["certificate"] |= {"unit": "percent", "passed": False, "more_examples": 21000, "higher_is_better": False}
    report["speedup"] |= {"value": 1.8671, "low": 1.8419, "high": 1.9022}
    report["speedup"] |= {
        "shape": {"batch": 1, "tokens": 128, "new_tokens": 64},
        "what": "whole requests, native backend",
    }
    for index, choice in enumerate(report["plan"]["choices"]):
        if choice["action"] == "drop":
            choice["norm"] = "keep" if index % 3 else "lose"
    report["samples"] = [
        {
            "prompt": "Once upon a time",
            "original": "there was a little girl who lived in a small village near the sea.",
            "changed": "there was a little girl who lived near the sea with her old grandmother.",
        }
    ]
    return report


def packed_report() -> dict[str, Any]:
    """The first report's run with formats: three for the links that are left, a head, and single formats beside it."""
    report = full_report()
    parts = []
    for index, choice in enumerate(report["plan"]["choices"]):
        if choice["action"] == "keep":
            form, bits = (("bf16", 16.0), ("int8", 8.25), ("int4", 5.0))[index % 3]
            choice["format"] = form
            parts.append({"what": choice["link"], "format": form, "bytes": int(1e6 * bits / 8), "bits": bits})
    parts.append({"what": "head", "format": "int8", "bytes": 28_000_000, "bits": 8.25})
    report["plan"]["head"] = "int8"
    report["packed"] = {"format": "bf16,0.mlp=int8", "bytes": 81_400_000, "bits": 6.63, "memory_mb": 85.0}
    report["packed"] |= {"parts": parts}
    report["packed"] |= {"single": {"format": "int8", "value": 1.31, "low": 1.27, "high": 1.36}}
    report["rows"][-1] |= {"name": "packed", "bytes": 81_400_000}
    for point in report["frontier"]:
        point |= {"bytes": 270_000_000 - 4e6 * (60 - point["links"]), "bits": 16.1}
        if point["method"] == "refine":
            point |= {"method": "mix", "bytes": 1.2e6 * point["links"], "bits": 5.1}
    for name, latency, bits in (("int8", 14.0, 8.3), ("int4", 11.0, 4.9)):
        report["frontier"].append(
            {"method": name, "style": "single", "stage": "before recovery", "speedup": 21.94 / latency, "links": 60}
            | {"latency_ms": latency, "quality": 3e-2 / bits, "bytes": 1.68e7 * bits, "bits": bits, "chosen": False}
        )
    return report


def minimal_report() -> dict[str, Any]:
    """Only what must be there."""
    report = full_report()
    for key in ("costs", "frontier", "frontier_quality", "tables", "samples", "notes", "command", "created", "seconds"):
        del report[key]
    for key in ("machine", "recipe", "timings"):
        report[key] = {}
    report["plan"] = {"num_blocks": 6, "method": "dp", "choices": [], "origin": {}}
    names = [f"{block}.{kind}" for block in range(6) for kind in ("attn", "mlp")]
    report["plan"]["choices"] = [
        {"link": n, "action": "drop" if n == "4.attn" else "keep", "norm": None} for n in names
    ]
    for each in report["rows"]:
        del each["metrics"]["token_accuracy"]
    return report
