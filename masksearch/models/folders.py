"""A model's folder that is replaced as a whole: the earlier state or the new one, never a mix.

    with replaced(folder) as aside:
        write_model(model, aside)
        (aside / "masksearch.json").write_text(manifest)

New files are written aside. When all of them are there, one move of their folder to `.saved`
decides; then they take their places. What is killed in between is completed by `settle`, which
every reader calls first.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from masksearch.errors import MaskFormatError
from masksearch.models.checkpoints import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MANIFEST = "masksearch.json"
SAVED = ".saved"  # inside the folder: complete new files that have not all taken their places
ASIDE = ".saving-"  # begin of the name of a folder that is being written, or was given up
ABANDONED = 24 * 3600.0  # seconds after which the next save removes such a folder
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


def write_model(model: PreTrainedModel, folder: Path) -> None:
    """Writes configuration and weights, the weights as safetensors.

    Raises:
        OSError: If the folder cannot be written, such as on a full disk.
    """
    try:
        with quiet():
            model.save_pretrained(folder)
    except SafetensorError as error:  # its way of passing on an OSError
        full = "os error 28" in str(error) or "No space left" in str(error)
        raise OSError(
            errno.ENOSPC if full else errno.EIO, f"cannot write the model: {error}", str(folder)
        ) from error


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files move to `folder` when the block ends without an error.

    Among the files must be the manifest, which lists them under `files`. Files of the same names
    are replaced; weights, and masks of the earlier manifest, that are not listed are removed;
    other files stay.

    Raises:
        OSError: If the folder cannot be written. What it held is then still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{ASIDE}*"):
        if time.time() - left.stat().st_mtime > ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=ASIDE, ignore_cleanup_errors=True) as name:
        written = Path(name) / "files"
        written.mkdir()
        yield written
        settle(folder)
        written.rename(folder / SAVED)
        settle(folder)


def settle(folder: Path) -> None:
    """Completes a save that was killed after it had written everything; else does nothing.

    Raises:
        OSError: If the folder cannot be written.
        MaskFormatError: If `.saved` is not what a save leaves.
    """
    saved = folder / SAVED
    if saved.is_symlink() or not saved.is_dir():
        return
    try:
        files = sorted(saved.iterdir(), key=lambda path: path.name == MANIFEST)
        if odd := [path for path in files if path.is_symlink() or not path.is_file()]:
            raise MaskFormatError(f"{odd[0]} is no plain file; remove {saved}")
        if files and files[-1].name == MANIFEST:  # moves last: without it, all have moved
            listed = listed_files(files[-1])
            if not {path.name for path in files[:-1]} <= listed:
                raise MaskFormatError(f"{files[-1]} does not list what is there; remove {saved}")
            for file in files[:-1]:
                file.replace(folder / file.name)
            for stale in stale_files(folder) - listed:
                (folder / stale).unlink(missing_ok=True)
            files[-1].replace(folder / MANIFEST)
        shutil.rmtree(saved)
    except FileNotFoundError:
        if saved.exists():  # else another reader was faster
            raise
    except OSError as error:
        raise type(error)(
            error.errno,
            f"the last save into this folder was interrupted, and it cannot be completed now "
            f"({error.strerror}); load it once where the folder can be written",
            str(folder),
        ) from error


def stale_files(folder: Path) -> set[str]:
    """Names of the weights there, and of the masks that the manifest there lists."""
    masks = {name for name in listed_files(folder / MANIFEST) if name.startswith("mask")}
    return masks | {path.name for path in folder.iterdir() if WEIGHTS.fullmatch(path.name)}


def listed_files(manifest: Path) -> set[str]:
    """Names that a manifest lists under `files`; none where it cannot be read."""
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        return {name for name in listed if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
