"""What the program computes, as plain JSON, to compare two commits on one machine.

    python tests/golden/record_searches.py record before.json     # in a checkout of the one
    python tests/golden/record_searches.py record after.json      # in a checkout of the other
    python tests/golden/record_searches.py compare before.json after.json

Every strategy, with the evaluators that it takes and each `adapt`, on models and data of seconds:
proposals, fingerprints, protocol ids, statuses and values to the last bit (`float.hex`); verdicts'
p-values and bounds, fronts, hypervolumes; masks, exports, caches, gates and importance maps. What
a machine measures (latencies, seconds) is left out. All numbers are those of one torch thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from masksearch.contracts import Report
from masksearch.gates.gates import Gates
from masksearch.masks.measure import fingerprint
from masksearch.report.collect import proxy_card as make_card
from masksearch.serving.native import from_native

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import torch
from plain_results import comparison_plain, interval, plain, reports, study_plain
from small_judges import (
    EVALUATORS,
    Landscape,
    Learning,
    Toy,
    causal,
    causal_space,
    conditional,
    flat,
    glue,
    planted,
    write_data,
)

import masksearch as ms
from masksearch import masks

CLOSE = 1e-12  # of p-values and bounds, relative to 1 or the value; all else is exact
BOUNDS = ("/verdicts/", "/proxy card/", "/models/plan/found/nll/unseen/")
SECTIONS: dict[str, Callable[[Path], Any]] = {}


# -- sections -----------------------------------------------------------------------------------
def section(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    SECTIONS[make.__name__.replace("_", " ")] = make
    return make


def searched(run: Path, evaluator: Any, strategy: str, **given: Any) -> Any:
    """A search, plainly."""
    settings: dict[str, Any] = {"trials": 3, "progress": None} | given
    space = settings.pop("space", None)
    return study_plain(ms.search(space, evaluator, run=run, strategy=strategy, **settings))


@contextmanager
def kept(found: dict[str, Any], name: str) -> Iterator[None]:
    """What fails is recorded as its error, and the rest goes on."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        found[name] = {"raised": f"{type(error).__name__}: {error}"[:300]}


@section
def proposals(folder: Path) -> Any:
    """Every sampler beyond its random start."""
    found: dict[str, Any] = {}
    for name in ("random", "tpe", "nsga2", "nsga3", "qmc", "evolution", "gp"):
        trials, spaces = (13, ("flat",)) if name == "gp" else (26, ("flat", "conditional"))
        for space in spaces:
            for seed in (0, 1) if name != "gp" else (0,):
                key = f"{name} {space} {seed}"
                with kept(found, key):
                    chosen = flat if space == "flat" else conditional
                    run = folder / key.replace(" ", "-")
                    given = {"trials": trials, "seed": seed, "space": chosen}
                    limits = ["sparsity >= 0.3"] if seed else []
                    options = {"population": 6} if name == "evolution" else {}
                    study = searched(
                        run, Toy(), name, constraints=limits, strategy_options=options, **given
                    )
                    found[key] = {
                        "front": study["front"],
                        "hypervolume": study["hypervolume"],
                        "records": {
                            number: {
                                part: each[part]
                                for part in ("params", "status", "fingerprint", "values", "reason")
                            }
                            for number, each in study["records"].items()
                        },
                    }
    return found


@section
def judged(folder: Path) -> Any:
    """Every evaluator: what it is, and three masks under two seeds and on three halves."""
    found: dict[str, Any] = {}
    for name, make in EVALUATORS.items():
        with kept(found, name):
            evaluator = make(folder)
            shape = evaluator.shape
            found[name] = {
                "protocol": evaluator.protocol,
                "shape": plain(shape.to_dict()),
                "objectives": [[o.name, o.goal, plain(o.worst)] for o in evaluator.objectives],
            }
            for text in ("star()", "window(2) | global_tokens(1)"):
                mask = masks.parse(text)
                for seed in (0, 3):
                    work = folder / "work" / name.replace(" ", "-") / str(seed) / mask.digest[:8]
                    said = reports(evaluator(mask, seed=seed, workdir=work))
                    found[name][f"{text} seed {seed}"] = said
            halves = ("holdout", "test", "all") if getattr(evaluator, "split", "") else ()
            for split in halves:
                with kept(found[name], split):
                    other = evaluator.on(split)
                    work = folder / "work" / name.replace(" ", "-") / split
                    said = reports(other(masks.star(), seed=0, workdir=work))
                    worst = [plain(o.worst) for o in other.objectives]
                    found[name][split] = [other.protocol, worst, said[-1:]]
    return found


@section
def searches(folder: Path) -> Any:
    """Every evaluator with a sampler; with DAM and allocation where it takes them."""
    found: dict[str, Any] = {}
    config = {"steps": 8, "density": 0.3, "dense_warmup": 0.25}
    dam = {"config": config, "gates": {"structure": "toeplitz"}}
    for name, make in EVALUATORS.items():
        evaluator = make(folder)
        causal = evaluator.shape.causal
        space = causal_space if causal else flat
        plans: dict[str, dict[str, Any]] = {"tpe": {"space": space}}
        plans["allocate"] = {
            "strategy_options": {"levels": ["star()", "full()"], "unit": "head"},
            "trials": 4,
        }
        if evaluator.offers("differentiable"):
            plans["dam"] = {"strategy_options": dam}
        if name in ("planted", "mlm", "causal"):
            preset = {"config": {"steps": 3, "micro_batches": 1}}
            plans["sparsebert"] = {"strategy_options": preset, "trials": 9}
        if name in ("planted", "glue none"):
            plans["random"] = {"space": space, "baselines": ms.masks.FAMILIES}
        for strategy, given in plans.items():
            key = f"{name}, {strategy}"
            with kept(found, key):
                run = folder / "runs" / key.replace(" ", "-").replace(",", "")
                found[key] = searched(run, evaluator, strategy, **given)
    return found


@section
def variants(folder: Path) -> Any:
    """Enqueued masks, halving, every way to allocate, every structure of gates, a resumed run."""
    found: dict[str, Any] = {}
    judge, runs = planted(folder, reports=3), folder / "variants"
    warm = {"steps": 8, "dense_warmup": 0.25}
    plans: dict[str, tuple[str, dict[str, Any]]] = {
        "enqueued": ("tpe", {"space": flat, "enqueue": [{"reach": 3, "count": 2}]}),
        "halving": (
            "random",
            {
                "space": flat,
                "trials": 9,
                "scheduler": ms.ParetoHalving(rungs=(2, 3), metric="loss", grace=2),
            },
        ),
        "constrained": ("tpe", {"space": flat, "constraints": ["sparsity >= 0.5"], "trials": 5}),
    }
    for structure in ("free", "symmetric", "toeplitz", "toeplitz+global", "block"):
        gates: dict[str, Any] = {"structure": structure}
        gates |= {"block": 4} if structure == "block" else {}
        plans[f"dam {structure}"] = ("dam", {"strategy_options": {"gates": gates, "config": warm}})
    for form in ("flip", "log"):
        gates = {"structure": "toeplitz", "signed": True, "form": form}
        options = {"gates": gates, "config": warm}
        plans[f"dam form {form}"] = ("dam", {"strategy_options": options})
    switch = {"structure": "switch", "levels": ["star()", "full()"], "unit": "head"}
    plans["dam switch"] = ("dam", {"strategy_options": {"gates": switch, "config": warm}})
    for key, (strategy, given) in plans.items():
        with kept(found, key):
            found[key] = searched(runs / key.replace(" ", "-"), judge, strategy, **given)
    ways: dict[str, dict[str, Any]] = {
        "restore": {"method": "restore"},
        "ablate": {"method": "ablate"},
        "greedy": {"method": "greedy"},
        "greedy 2 tries": {"method": "greedy", "tries": 2},
        "exact": {"method": "restore", "budgets": [0.5, 0.8]},
        "three levels": {"levels": ["star()", "longformer(3, 1)", "full()"]},
        "gates": {"method": "gates", "config": warm},
    }
    for key, options in ways.items():
        judges = {"toy": Toy(), "planted": planted(folder, size="2x16x2")}
        for name, other in judges.items():
            if key == "gates" and name == "toy":
                continue
            with kept(found, f"allocate {key}, {name}"):
                chosen = {"levels": ["star()", "full()"], "unit": "head", **options}
                run = runs / f"allocate-{key.replace(' ', '-')}-{name}"
                found[f"allocate {key}, {name}"] = searched(
                    run, other, "allocate", trials=12, strategy_options=chosen
                )
    with kept(found, "resumed"):
        for trials in (2, 4):
            found["resumed"] = searched(
                runs / "resumed", judge, "evolution", space=flat, trials=trials
            )
    return found


@section
def verdicts(folder: Path) -> Any:
    """Comparisons: of masks, of a front, without seeds, of a decoder."""
    found: dict[str, Any] = {}
    judge = Landscape()
    study = ms.search(
        flat, judge, run=folder / "front", trials=12, progress=None, strategy="random"
    )
    mine = {"mine": masks.window(6), "other": masks.offsets([0, 5]), "dense": masks.full()}
    silent = {"progress": None}
    plans: dict[str, Callable[[], Any]] = {
        "masks": lambda: ms.compare(
            {**mine, **ms.masks.FAMILIES},
            judge,
            run=folder / "masks",
            seeds=range(1000, 1004),
            kinds={"mine": "searched"},
            **silent,
        ),
        "against all": lambda: ms.compare(
            {**mine, **ms.masks.FAMILIES},
            judge,
            run=folder / "masks-all",
            seeds=range(1000, 1003),
            kinds={"mine": "searched"},
            against="all",
            **silent,
        ),
        "planted": lambda: ms.compare(
            {**mine, **ms.masks.FAMILIES},
            planted(folder, steps=40, downstream_steps=8),
            run=folder / "planted-masks",
            seeds=range(1000, 1003),
            kinds={"mine": "searched"},
            **silent,
        ),
        "front": lambda: ms.compare(
            {"dense": masks.full()},
            judge,
            run=folder / "judged-front",
            seeds=range(1000, 1003),
            front_of=study,
            **silent,
        ),
        "seedless": lambda: ms.compare(
            {**mine, "found": masks.longformer(4, 1)},
            glue(folder, "none"),
            run=folder / "seedless",
            kinds={"found": "searched"},
            **silent,
        ),
        "glue seeds": lambda: ms.compare(
            mine, glue(folder), run=folder / "seeds", seeds=range(1000, 1003), **silent
        ),
        "decoder": lambda: ms.compare(
            {
                "found": masks.causal() & masks.window(5),
                "dense": masks.causal(),
                "sinks": masks.causal() & (masks.window(3) | masks.columns(2)),
            },
            causal(folder, "none"),
            run=folder / "decoder",
            kinds={"found": "searched"},
            **silent,
        ),
        "a found record": lambda: ms.compare(
            {"found": study.best(), "dense": masks.full()},
            judge,
            run=folder / "found",
            seeds=range(1000, 1003),
            **silent,
        ),
    }
    for key, make in plans.items():
        with kept(found, key):
            found[key] = comparison_plain(make())
    return found


@section
def masks_and_exports(folder: Path) -> Any:
    """Masks as JSON, digests, measures; nearest families; configurations; caches."""
    import transformers

    found: dict[str, Any] = {}
    draw = torch.Generator().manual_seed(0)
    table = torch.rand(2, 2, 16, 16, generator=draw) < 0.3
    table |= torch.eye(16, dtype=torch.bool)
    texts = [
        *("full()", "causal()", "window(3)", "dilated(4, 2)", "stride(4)", "offsets([0, 3, 7])"),
        *("shifts([-1, 0, 2])", "powers_of_two() | window(0)", "blocks(4)", "global_tokens(2)"),
        *("block_columns(4, 1) | window(0)", "random_keys(3, 7)", "without_diagonal(window(2))"),
        *("per_head([window(1), star()])", "per_layer([full(), per_head([window(2), star()])])"),
        *("full() - window(1)", "~window(2)", "a_shape(2, 3)", "vertical_slash([0], [0, 3])"),
        *("axial(4, 4)", "butterfly(4)", "columns(2) | window(1)"),
    ]
    several = {text: text for text in texts} | {
        f"family {name}": name for name in ms.masks.FAMILIES
    }
    shapes = {
        "plain": ms.Shape(16, 2, 2),
        "causal": ms.Shape(16, 2, 2, causal=True),
        "lengths": ms.Shape(16, 2, 2, lengths={9: 3, 16: 1}),
        "read": ms.Shape(16, 2, 2, lengths={9: 3, 16: 1}, read=1),
    }
    for key, text in several.items():
        with kept(found, key):
            mask = ms.masks.FAMILIES[text] if text in ms.masks.FAMILIES else masks.parse(text)
            found[key] = mask_plain(mask, shapes)
    found["table"] = mask_plain(masks.table(table), shapes)
    found["toeplitz"] = mask_plain(
        masks.toeplitz(table[0, 0, 3] | (torch.arange(16) == 0)), shapes
    )
    for key, mask in {
        "star": masks.table(masks.star().dense(32)),
        "union": masks.table((masks.window(2) | masks.stride(8)).dense(32)),
        "heads": masks.table(
            masks.parse("per_head([window(3), longformer(2, 1)])").dense(24, 1, 2)
        ),
        "noise": masks.table(table),
    }.items():
        near = ms.masks.nearest_family(mask)
        found[f"nearest {key}"] = [near.text, near.explained, plain([near.iou, near.bits])]
        found[f"nearest {key}"] += [near.missing, near.extra]
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0}
    sizes |= {"bos_token_id": 1, "eos_token_id": None, "num_key_value_heads": 2}
    configs = {
        "qwen3": transformers.Qwen3Config(**sizes, head_dim=16),
        "qwen2": transformers.Qwen2Config(**sizes),
        "llama": transformers.LlamaConfig(**sizes),
    }
    local = masks.per_layer([masks.window(5), masks.full(), masks.window(5)])
    sinks = masks.causal() & (masks.window(9) | masks.columns(2))
    for key, config in configs.items():
        with kept(found, f"native {key}"):
            made = ms.to_native(config, local).to_dict()
            made.pop("transformers_version", None)
            found[f"native {key}"] = plain(made)
            found[f"native {key} back"] = str(from_native(ms.to_native(config, local)))
        for name, mask in {"local": local, "sinks": sinks, "causal": masks.causal()}.items():
            for named, account in (("layer", "mask"), ("head", "head")):
                for length in (64, 200):
                    held = ms.kv_bytes(mask, config, length, account=account)
                    found[f"kv_bytes {key} {name} {named} {length}"] = [
                        *(held.bytes, held.dense_bytes, plain(held.share))
                    ]
    return found


def mask_plain(mask: masks.Mask, shapes: Mapping[str, ms.Shape]) -> dict[str, Any]:
    from masksearch.masks.measure import effective_density, measures

    text = mask.to_json()
    found: dict[str, Any] = {"json": text[:2000], "digest": mask.digest, "expression": str(mask)}
    found["again"] = ms.Mask.from_json(text).digest == mask.digest
    for name, shape in shapes.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found[name] = {
                    "fingerprint": fingerprint(mask, shape),
                    "measures": plain(measures(mask, shape)),
                    "effective": plain(effective_density(mask, shape)),
                }
            except ms.errors.MaskSearchError as error:
                found[name] = type(error).__name__
    return found


@section
def gates_and_positions(folder: Path) -> Any:
    """DAM on a model, what is cut from it, and importance maps."""
    found: dict[str, Any] = {}
    offered = planted(folder).differentiable(0)
    batches = [next(offered.batches) for _ in range(4)]
    for structure in ("free", "toeplitz+global"):
        gates = Gates(structure, length=24, heads=offered_heads(offered.model), seed=1)
        config = ms.DamConfig(steps=12, density=0.2, dense_warmup=0.25)
        model = planted(folder).build_model(0)
        with kept(found, f"dam {structure}"):
            result = ms.dam(model, batches, gates, config, held_out=offered.held_out[:1])
            found[f"dam {structure}"] = {
                "probabilities": plain(result.probabilities),
                "curve": reports(result.curve),
                "held out": plain(result.held_out),
                "masks": [plain(result.mask(sparsity=share)) for share in (0.5, 0.9)],
                "threshold": plain(result.mask(threshold=0.5)),
            }
    model = planted(folder).differentiable(1).model
    for method in ("gradient", "drop", "flip"):
        for per in ("head", "model"):
            with kept(found, f"importance {method} {per}"):
                seen = ms.importance(model, batches[:3], method=method, per=per)
                found[f"importance {method} {per}"] = {
                    "diagonal": interval(seen.diagonal),
                    "by offset": interval(seen.by_offset),
                    "values": plain(seen.values),
                }
    scheduler = ms.ParetoHalving(rungs=(2, 5), factor=2)
    draw, decisions = random.Random(0), []
    for number in range(40):
        sparsity, loss = draw.random(), draw.random()
        for step in (2, 5):
            said = Report(step, {"loss": loss / step + (1 - sparsity) / 9})
            goes_on = scheduler.observe(number, said, {"sparsity": sparsity})
            decisions.append([number, step, goes_on])
            if not goes_on:
                break
    found["halving"] = decisions
    return found


@section
def models(folder: Path) -> Any:
    """Attached masks, saved models, a cache that frees keys, an allocation for a decoder."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    found: dict[str, Any] = {}
    ids = torch.arange(48).view(2, 24) * 5 % 60 + 6
    kinds = {"bert": AutoModelForMaskedLM, "llama": AutoModelForCausalLM}
    for (name, kind), text in itertools.product(
        kinds.items(), ("star()", "per_layer([window(2), columns(1) | window(4)])")
    ):
        for backend in ("sdpa", "gather"):
            with kept(found, f"{name} {text} {backend}"), torch.no_grad():
                model = kind.from_pretrained(folder / name).eval()
                ms.attach(model, masks.parse(text), backend=backend)
                logits = plain(model(ids).logits)
                saved = folder / "saved" / f"{name}-{masks.parse(text).digest[:6]}-{backend}"
                ms.save_pretrained(model, saved)
                again = plain(ms.load_pretrained(saved).eval()(ids).logits)
                ms.detach(model)
                found[f"{name} {text} {backend}"] = [logits, again, plain(model(ids).logits)]
    with kept(found, "masked cache"), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder / "llama").eval()
        ms.attach(model, masks.causal() & (masks.window(5) | masks.columns(1)))
        cache = ms.MaskedCache(model)
        given = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        made = model.generate(ids[:, :8], past_key_values=cache, **given)
        held = [list(layer.keys.shape) for layer in cache.layers]
        found["masked cache"] = [made.tolist(), held]
    run = folder / "allocated"
    words = ["allocate", str(folder / "llama"), str(folder / "spoken"), "--budget", ".7"]
    words += ["--local", "columns(1) | window(2)", "--length", "24", "--run", str(run)]
    words += ["--method", "restore"]
    with kept(found, "plan"):
        said = subprocess.run(
            [sys.executable, "-m", "masksearch", *words], capture_output=True, text=True
        )
        if said.returncode:
            raise RuntimeError(said.stderr[-300:])
        plan = json.loads((run / "plan.json").read_text("utf-8"))
        plan["model"].pop("name", None)
        found["plan"] = plain(plan)
    return found


@section
def proxy_card(folder: Path) -> Any:
    """How far early reports, which are noisy, agree with the last ones."""
    given = {"seeds": range(1000, 1003), "progress": None}
    several = {f"window {reach}": masks.window(reach) for reach in range(12)}
    ms.compare(several, Learning(), run=folder / "card", **given)
    card = make_card(folder / "card", bands=2, resamples=200)
    return {"card": plain(card.to_dict()), "verdict": card.verdict().split("\n")}


def offered_heads(model: Any) -> int:
    configs = (getattr(part, "config", None) for part in model.modules())
    return int(next(c.num_attention_heads for c in configs if c is not None))


# -- record and compare -------------------------------------------------------------------------
def record(path: Path, only: list[str]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        os.environ["MASKSEARCH_CACHE"] = f"{place}/cache"
        write_data(Path(place) / "data")
        for name, make in SECTIONS.items():
            if only and name not in only:
                continue
            start, own = time.process_time(), Path(place) / "data"
            with kept(found, name):
                found[name] = make(own)
            print(f"{name}: {time.process_time() - start:.0f} s", file=sys.stderr)
    text = json.dumps(found, indent=1, sort_keys=True, default=plain)
    path.write_text(text + "\n", encoding="utf-8")


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text with its path."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaves(each, f"{at}/{key}")
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield from leaves(each, f"{at}/{index}")
    else:
        yield at, value


def equal(first: Any, second: Any, tolerance: float) -> bool:
    if first == second:
        return True
    try:
        one, two = float.fromhex(first), float.fromhex(second)
    except (TypeError, ValueError):
        return False
    return abs(one - two) <= tolerance * max(1.0, abs(one))


def compare(first: Path, second: Path, leave: list[str]) -> int:
    """Prints every difference; returns how many."""
    one, two = (dict(leaves(json.loads(path.read_text("utf-8")))) for path in (first, second))
    count = 0
    for at in sorted({*one, *two}):
        if any(part in at for part in leave):
            continue
        tolerance = CLOSE if at.startswith(BOUNDS) and "/records/" not in at else 0.0
        if at not in one or at not in two:
            which = "second" if at in two else "first"
            print(f"only in the {which}: {at} = {two.get(at, one.get(at))}")
        elif not equal(one[at], two[at], tolerance):
            print(f"{at}: {one[at]} | {two[at]}")
        else:
            continue
        count += 1
    print(f"{count} of {len({*one, *two})} values differ", file=sys.stderr)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("record", help="write what this checkout computes")
    making.add_argument("out", type=Path)
    making.add_argument("--only", action="append", default=[], choices=list(SECTIONS))
    checking = commands.add_parser("compare", help="print every difference; exit code 1 if any")
    checking.add_argument("first", type=Path)
    checking.add_argument("second", type=Path)
    checking.add_argument("--leave", action="append", default=[], help="paths that hold this text")
    given = parser.parse_args()
    if given.command == "record":
        record(given.out, given.only)
    elif compare(given.first, given.second, given.leave):
        sys.exit(1)


if __name__ == "__main__":
    main()
