"""Where a checkpoint's files are: a folder, the Hub's cache, or the Hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from masksearch.errors import DataError

SECONDS = 5.0  # for the Hub's first answer
FILES = (  # what is downloaded: no pickle, no code
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
CONFIG = "config.json"
OTHERS = (
    "adapter_config.json",
    "shard-*.safetensors",
)  # transformers adds or prefers their weights
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def local_folder(name: str | Path) -> Path | None:
    """The absolute folder of that name; None where it can only be a Hub name.

    Raises:
        DataError: If it is a file, or can only be a folder and does not exist.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        raise DataError(f"{path} is a file; give the folder that holds it beside config.json")
    spelled = str(name)
    if isinstance(name, Path) or spelled.startswith((".", "~", os.sep)) or spelled.count("/") > 1:
        raise DataError(
            f"no such folder: {path}; give a folder with config.json and model.safetensors, "
            "or a name on the Hugging Face Hub such as google-bert/bert-base-uncased"
        )
    return None


def downloaded(name: str, revision: str | None = None) -> Path:
    """The folder of a Hub checkpoint, from the cache where it is whole, else from the Hub.

    One try: a Hub that cannot be reached is said at once.

    Raises:
        DataError: If it is neither in the cache nor can be downloaded.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    patterns = list(FILES)
    try:
        cached = snapshot_download(
            name, revision=revision, allow_patterns=patterns, local_files_only=True
        )
        if whole(Path(cached)):
            return Path(cached)
    except OSError:
        pass  # not in the cache
    except ValueError as error:  # a name that the Hub cannot have
        raise DataError(
            f"no such folder, and no Hub name either: {name!r}; give a folder with config.json "
            "and model.safetensors, or a name such as google-bert/bert-base-uncased"
        ) from error
    try:
        found = HfApi().model_info(name, revision=revision, timeout=SECONDS)  # one try, no retries
        folder = snapshot_download(name, revision=found.sha, allow_patterns=patterns)
    except (OSError, HTTPError) as error:  # HTTPError: of the Hub client's own transport
        raise DataError(
            f"no folder {name!r}, and the Hugging Face Hub gave no checkpoint of that name "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            "without a network, give a local folder with config.json and model.safetensors "
            "(--weights FOLDER)"
        ) from error
    return Path(folder)


def whole(folder: Path) -> bool:
    """Whether configuration and weights are there."""
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except DataError:
        return False


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, by name.

    Raises:
        DataError: If there is none, or one that the index names is missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        pickles = sorted(file.name for kind in PICKLES for file in folder.glob(kind))
        if pickles:
            raise DataError(
                f"{folder} holds its weights as a pickle ({pickles[0]}), which can run any code "
                "when it is read, so it is refused; where you trust its source, convert it: "
                "AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(new_folder)"
            )
        raise DataError(
            f"{folder} holds no model.safetensors; give the folder that save_pretrained wrote, or "
            "a Hub checkpoint that has safetensors (pickled weights are not downloaded)"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is not an index of safetensors files: {error!r}") from error
    files = [folder / Path(name).name for name in names]
    for file in files:
        if not file.is_file():
            raise DataError(f"{index.name} names {file.name}, which {folder} does not hold")
    return [index, *files]


def configuration(folder: Path) -> dict[str, Any]:
    """`config.json` as plain data.

    Raises:
        DataError: If it is missing or cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise DataError(
            f"{folder} holds no config.json; give the folder that save_pretrained wrote"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return found


def refuse_other_weights(folder: Path) -> None:
    """Refuses what makes transformers read other weights than `weight_files`.

    Raises:
        DataError: If configuration or files name such weights.
    """
    if configuration(folder).get("transformers_weights") is not None:
        raise DataError(
            f"{folder / CONFIG} names weights of its own choice (transformers_weights); "
            "only model.safetensors and its shards are read, remove that entry"
        )
    if found := sorted(path.name for pattern in OTHERS for path in folder.glob(pattern)):
        raise DataError(
            f"{folder} holds {found[0]}, for which transformers would take other weights than "
            "those of model.safetensors and its shards; remove it"
        )


def config_of(folder: Path) -> Any:
    """The configuration of a checkpoint, a fresh object each time.

    Raises:
        DataError: If there is none, it cannot be read, or it is not that of an encoder.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    file = folder / "config.json"
    if not file.is_file():
        raise DataError(
            f"{folder} holds no config.json; give the folder that save_pretrained wrote"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    kind = config.model_type
    decodes = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False)
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or decodes:
        raise DataError(
            f"{file}: {kind!r} is not an encoder that predicts masked tokens; give one such as "
            "bert, roberta, distilbert, electra, albert or modernbert"
        )
    return config
