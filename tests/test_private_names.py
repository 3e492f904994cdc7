"""The private names of other libraries that the package stands on: each still there, each listed.

One table a library. A name that a new release has moved or renamed fails here, in words, before
it fails as something else, or as nothing at all.
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parsed import DECODERS, FILES, nodes_of

OWN = {"_asdict", "_replace"}  # of named tuples: documented
STANDARD = {"_exit", "_getframe", "_current_frames", "_thread"}  # of os and sys: documented too


def attribute(owner: Any, name: str) -> bool:
    return hasattr(owner, name)


def written(owner: Any, name: str) -> bool:
    """Whether a class or module writes the name: attributes of its objects, and arguments."""
    return name in inspect.getsource(owner)


# (where it is, how it is looked for) -> the names there, and what fails without them
Table = dict[tuple[str, Callable[[Any, str], bool]], tuple[tuple[str, ...], str]]
TORCH: Table = {
    ("torch", attribute): (
        (
            "_foreach_lerp_",
            "_foreach_mul_",
            "_foreach_addcmul_",
            "_foreach_sqrt",
            "_foreach_div",
            "_foreach_add_",
            "_foreach_div_",
            "_foreach_norm",
        ),
        "training/lamb.py updates all weights in one call",
    ),
    ("torch._C", attribute): (
        ("_get_tracing_state", "_are_functorch_transforms_active", "_functorch"),
        "attention/ leaves graphs that leave the process, and torch.func, to SDPA",
    ),
    ("torch._C._functorch", attribute): (("is_functorch_wrapped_tensor",),
        "attention/interface.py keeps padding under vmap as it is"),
    ("torch._C:", attribute): (
        (
            "_dispatch_tls_local_include_set",
            "_dispatch_tls_local_exclude_set",
            "_ForceDispatchKeyGuard",
        ),
        "attention/kernels/choose.py differentiates below autograd once more",
    ),
    ("torch.ops:aten", attribute): (
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward",
        ),
        "attention/kernels/gather.py computes its tiles by it",
    ),
    ("torch.nn:Module", written): (("_apply", "_modules"),
        "gates/gates.py moves with its model; attention/ finds and removes gates"),
    ("torch.cpu", attribute): (("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        "sparsifier/faster.py tries bfloat16 where a CPU computes in it"),
    ("torch._dynamo.eval_frame:OptimizedModule", written): (("_orig_mod",),
        "attention/probe.py finds the model inside a compiled one"),
}  # fmt: skip
TRANSFORMERS: Table = {
    ("transformers:PreTrainedModel", attribute): (
        ("_supports_sdpa", "_init_weights"),
        "models/checkpoints.py tells a class that takes no mask from weights that do not fit; "
        "models/encoders.py draws a new head's weights",
    ),
    ("transformers:PreTrainedConfig", written): (
        ("_attn_implementation", "_attn_implementation_internal"),
        "attention/ and models/ set which attention computes",
    ),
    ("transformers.modeling_utils", written): (
        ("_gradient_checkpointing_func",),
        "attention/attach.py refuses checkpointing that would drop gates",
    ),
    ("accelerate.hooks", written): (("_hf_hook",), "attention/probe.py finds offloaded modules"),
}
OPTUNA: Table = {
    ("optuna:Study", written): (("_study_id",), "study/store.py writes to the storage itself"),
    ("optuna.trial:FrozenTrial", written): (("_trial_id",), "study/store.py likewise"),
}
RAY: Table = {
    ("ray", attribute): (("_private",), "executors/ray.py needs the three below"),
    ("ray._private", attribute): (("ray_constants", "services", "state", "worker"), "likewise"),
    ("ray._private.services", attribute): (("canonicalize_bootstrap_address",),
        "executors/ray.py joins the cluster that ray.init would"),
    ("ray._private.state", attribute): (("actors",), "executors/ray.py names lost nodes"),
    ("ray._private.worker", attribute): (("print_to_stdstream",),
        "executors/ray.py keeps reports of lost workers off standard output"),
    ("ray._private.worker:init", written): (("_node_ip_address",),
        "executors/ray.py binds a local cluster to 127.0.0.1 alone"),
    ("ray.air.execution._internal:RayActorManager", attribute): (
        ("_actor_task_failed", "_actor_start_failed"),
        "executors/ray.py ends a trial, not the search, where a worker is lost",
    ),
    ("ray.tune.execution.tune_controller:TuneController", written): (
        ("_maybe_reuse_cached_actor", "_trial_to_actor", "_actor_manager", "_resetting_trials"),
        "executors/ray.py lets workers start that have room",
    ),
}  # fmt: skip
TQDM: Table = {
    ("tqdm:tqdm", written): (("_instances",), "study/console.py draws beside other bars")
}
TABLES = {"torch": TORCH, "transformers": TRANSFORMERS, "optuna": OPTUNA, "ray": RAY, "tqdm": TQDM}


@pytest.mark.parametrize("library", TABLES)
def test_private_names_are_where_they_are_looked_for(library):
    pytest.importorskip(library)
    version, moved = importlib.metadata.version(library), []
    for (place, looks), (names, purpose) in TABLES[library].items():
        module, _, inside = place.partition(":")
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            continue  # accelerate: of an extra
        owner = importlib.import_module(module)
        owner = getattr(owner, inside) if inside else owner
        moved += [f"{place} has no {name}: {purpose}" for name in names if not looks(owner, name)]
    assert not moved, f"{library} {version} has moved what the package uses:\n" + "\n".join(moved)


def private_names(path: Path) -> set[str]:
    """Names with one underscore in front that a file takes from objects that are not its own."""
    found, defined = set(), set()
    for node in nodes_of(path):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                found |= {name} if path.name == "ray.py" else set()
            case ast.Attribute(attr=name):
                found.add(name)
            case ast.ImportFrom(module=str(module), names=names):
                found |= {*module.split("."), *(alias.name for alias in names)}
            case ast.FunctionDef(name=name):
                defined.add(name)
    private = {name for name in found if name[:1] == "_" and name[1:2] not in ("_", "")}
    return private - defined - OWN - STANDARD


def test_every_private_name_stands_in_a_table():
    listed = {name for table in TABLES.values() for names, _ in table.values() for name in names}
    places = {
        part
        for table in TABLES.values()
        for place, _ in table
        for part in place.replace(":", ".").split(".")
    }
    used = {name for path in (*FILES, *DECODERS) for name in private_names(path)}
    assert used - listed - places == set(), "taken from another library: list it with its purpose"
    there = "".join(path.read_text(encoding="utf-8") for path in (*FILES, *DECODERS))
    assert {name for name in listed if name not in there} == set(), "listed, and not used any more"
