"""The model card of a saved folder, and the folder's way to the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import EvalResult, HfApi, ModelCardData, get_token, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

from masksearch.errors import DataError
from masksearch.masks import Mask
from masksearch.masks.picture import LENGTH, draw_table
from masksearch.masks.text import short_text
from masksearch.models.checkpoints import VERSION, verify
from masksearch.models.embedding import MODULES

CARD = "README.md"
REFUSED = (
    '**Transformers alone refuses this folder: `Specified attn_implementation="masksearch" is not '
    "supported`. What it recommends then, `eager` or `sdpa`, opens the dense model, which is "
    "another one, and so do engines with classes of their own: open the folder by "
    "`masksearch.load_pretrained`.**"
)
ADAPTER = (
    "**PEFT alone puts this adapter on its base without the mask, which is another model, without "
    "a warning.**"
)
STAMP = b"<!-- written by masksearch: "  # then the hash of the text; a changed card is its user's
LONGEST = 512  # positions at which a mask's sparsity is counted, at most
WIDEST = 300  # characters of an expression
KEPT_HERE = [  # not uploaded: caches, checkpoints and pickles, in folders too
    *(".*", "*/.*", "checkpoint-*", "*/checkpoint-*", "*.bin", "*.pt", "*.pth"),
    *("*.pkl", "*.pickle", "*.ckpt", "*.joblib"),
]
USE = """
## Load and serve it

```python
import masksearch as ms  # pip install masksearch

model = ms.load_pretrained("OWNER/NAME")  # this repository; or a folder on disk
print(ms.explain(model, length={length}))  # what computes each layer, and why
print(*ms.measure_speed(model, length={length}))  # dense and masked, in turns
```

Give other programs the model that is loaded here. Where each layer sees everything
or one window, `masksearch_decoders.to_native` writes the mask into the model's own configuration.
"""
REPEAT = """
## Put the mask on its base again

```python
from transformers import {cls}

base = {cls}.from_pretrained("{base}")
ms.attach(base, ms.attached(model))  # weights trained under the mask are in this folder only
```
"""


@dataclass(frozen=True)
class Findings:
    """How the mask of an encoder was found, for its card.

    Args:
        answer: In sentences.
        base_model: The checkpoint that was given: a name on the Hub, or a folder.
        task: What it was fine-tuned on, or the texts that it was judged by.
        metric: Name of the score.
        score: Of the saved weights, on rows that no search has read.
        way: A plain way that the model was made faster in, for `masksearch.json`.
    """

    answer: str
    base_model: str
    task: str
    metric: str
    score: float
    way: str = ""


class Account(Protocol):
    """Another account of how a mask was found, such as a plan of `masksearch allocate`."""

    @property
    def mask(self) -> Mask:
        """The mask."""

    def describe(self) -> str:
        """The section of the card, in Markdown."""


def write_card(
    aside: Path,
    folder: Path,
    model: Any,
    files: Mapping[str, Mask],
    found: Account | Findings | None,
) -> None:
    """Draws masks, and writes the card unless the folder has one of its user's.

    Args:
        aside: Where to.
        folder: Where that will be moved.
        model: Of transformers, without adapters.
        files: Name of a mask's file, without suffix -> mask.
        found: How the mask was found; None = not known.
    """
    cls, base = type(model).__name__, model.name_or_path
    length = min(getattr(model.config, "max_position_embeddings", LONGEST), LONGEST)
    causal = {module.is_causal for module in model.modules() if hasattr(module, "is_causal")}
    warning = ADAPTER if (aside / "adapter_config.json").exists() else REFUSED
    text = f"{warning}\n\n# {cls} with an attention mask\n\n"
    table = "| | |\n|---|---|\n"
    for name, mask in files.items():
        expression = html.escape(short_text(mask, WIDEST)).replace("|", "&#124;")
        table += f"| {name.replace('.', ' of ', 1)} | <code>{expression}</code> |\n"
        if not mask.needs_tokens:  # else it is another one in each batch
            at = mask.length or min(length, mask.longest or length)
            drawn = mask.dense(mask.length or min(LENGTH, at))
            data, width, panels = draw_table(drawn, enlarged=True)
            (aside / f"{name}.png").write_bytes(data)
            caption = "; ".join(
                filter(None, ["Queries down, keys across, dark = may attend", panels])
            )
            text += f'<img src="{name}.png" width="{width}" alt="{name}">\n\n{caption}.\n\n'
            cells = "a decoder's" if causal == {True} else "all"
            share = mask.sparsity(at, causal == {True})
            table += f"| sparsity | {share:.1%} of {cells} cells at {at:,} positions |\n"
    try:
        cached = try_to_load_from_cache(base, "config.json")
    except HFValidationError:  # a path
        cached = None
    base = base if isinstance(cached, str) and not Path(base).exists() else None
    results: dict[str, Any] = {}
    if isinstance(found, Findings):
        base = None if Path(found.base_model).exists() else found.base_model
        embeds = (aside / MODULES).exists()
        score = EvalResult(
            task_type="sentence-similarity" if embeds else "text-classification",
            dataset_type=found.task,
            dataset_name=found.task,
            metric_type=found.metric,
            metric_value=round(found.score, 5),
        )
        results = {"model_name": folder.name, "eval_results": [score]}
    text += table + (f"| base model | {base} |\n" if base else "")
    length = min([length, *(mask.longest or length for mask in files.values())])
    text += f"| written by | masksearch {VERSION} |\n" + USE.format(length=length)
    if isinstance(found, Findings):
        text += f"\n## How it was found\n\n{found.answer}\n"
    elif found is not None:
        text += found.describe()
    text += REPEAT.format(cls=cls, base=base) if base else ""
    tags = ["masksearch", "sparse-attention"]
    about_it = {"base_model": base, "library_name": "masksearch", "tags": tags}
    head = ModelCardData(**about_it, **results).to_yaml()
    card = f"---\n{head}\n---\n\n{text}\n".encode()
    before = (folder / CARD).read_bytes() if (folder / CARD).exists() else STAMP + seal(b"")
    ours, _, sealed = before.rpartition(STAMP)
    if sealed == seal(ours):
        (aside / CARD).write_bytes(card + STAMP + seal(card))
    else:
        (aside / CARD).unlink(missing_ok=True)  # PEFT writes one as well


def seal(text: bytes) -> bytes:
    """The bytes after the stamp of a card that nobody has changed."""
    return f"{hashlib.sha256(text).hexdigest()} -->\n".encode()


def push_to_hub(folder: Path | str, repo_id: str, *, private: bool | None = None) -> str:
    """Uploads what `save_pretrained` wrote to the Hugging Face Hub.

    Pickles, hidden files and the checkpoints of a training stay here.

    Args:
        folder: Of the model; its masks and weights are checked first.
        repo_id: `"owner/name"`; the repository is made where there is none.
        private: Whether a new repository is; None = as the owner's settings say.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError, MaskFormatError: As in `verify`.
        DataError: If the folder holds no mask or other weights than its own, there is no token,
            or the Hub refuses the upload or cannot be reached.
    """
    if not verify(folder):
        raise DataError(
            f"{folder} holds a dense model, and only a model with its mask is uploaded: "
            "ms.attach(model, mask); ms.save_pretrained(model, folder)"
        )
    if get_token() is None:
        raise DataError(
            f"an upload to {repo_id} needs a token of the Hugging Face Hub with write access, and "
            "there is none: run hf auth login, or set HF_TOKEN"
        )
    folder = Path(folder).expanduser()
    try:
        repo_id = HfApi().create_repo(repo_id, private=private, exist_ok=True).repo_id
        upload = HfApi().upload_folder
        sent = upload(repo_id=repo_id, folder_path=folder, ignore_patterns=KEPT_HERE)
    except (OSError, ValueError, HTTPError) as error:
        raise DataError(
            f"{folder} was not uploaded to {repo_id} ({type(error).__name__}: "
            f"{' '.join(str(error).split()):.300}); check the name, that the token may write "
            "there, and the network"
        ) from error
    return sent.commit_url
