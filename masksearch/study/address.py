"""Where the study of a run folder is: its name and its storage, as `study.json` in it says.

The file is written when the study is made, so that a folder can be renamed, moved and copied.
Folders of earlier versions have none: theirs is the one study in `study.db`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from optuna.storages import BaseStorage

from masksearch.errors import SearchError
from masksearch.files import write_text_in_one_move
from masksearch.study.storage import StorageLocation, locate_storage

FILE, DATABASE = "study.json", "study.db"
LISTED = 8  # studies that an error names
HERE = "{run}"  # the run folder, in the storage that is written down


@dataclass(frozen=True)
class StudyAddress:
    """What `study.json` says.

    Args:
        name: Of the study in its storage.
        storage: As in `masksearch.search`, without password; None = `study.db` in the folder,
            or an Optuna storage that was given as an object.
    """

    name: str
    storage: str | None = None


def holds_study(run: Path) -> bool:
    """Whether a folder is a run's."""
    return (run / DATABASE).is_file() or (run / FILE).is_file()


def read_address(run: Path) -> StudyAddress | None:
    """What a run folder says of its study; None where it says nothing.

    Raises:
        SearchError: If its `study.json` cannot be read.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        name, storage = data["study"], data.get("storage")
        if not isinstance(name, str) or not isinstance(storage, str | None):
            raise TypeError("both are text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SearchError(
            f'{path} is damaged ({error!r}); it reads {{"study": "NAME"}}, with the name of a '
            'study, and with "storage" where that is not study.db'
        ) from error
    place = storage and storage.replace(HERE, str(run.resolve()))
    return StudyAddress(name, place or None)


def write_address(run: Path, name: str, storage: str | BaseStorage | None) -> None:
    """Writes `study.json`, in one step; paths in the run folder so that they move with it."""
    text = storable_storage(storage) if isinstance(storage, str) else None
    if text is not None:
        text = text.replace(f"{run.resolve()}/", f"{HERE}/")
    content, path = json.dumps({"study": name, "storage": text}), run / FILE
    if not path.is_file() or path.read_text(encoding="utf-8") != content:
        write_text_in_one_move(path, content)


def storable_storage(storage: str) -> str:
    """A storage as it may be written down: paths absolute, no password.

    >>> storable_storage("postgresql://me:secret@db/masks")
    'postgresql://me@db/masks'
    """
    location = locate_storage(Path(), storage)
    if location.path is not None:
        return f"{'sqlite:///' if location.kind == 'sqlite' else 'journal:'}{location.path}"
    url = sqlalchemy.engine.make_url(storage)
    parts = url._replace(password=None).difference_update_query(["password"])
    return parts.render_as_string(hide_password=False)


def find_study(run: Path, location: StorageLocation, storage: BaseStorage, *, write: bool) -> str:
    """The name of a run folder's study.

    Args:
        run: The folder.
        location: Where its storage is.
        storage: The storage itself.
        write: Whether a study may be made; a new one is named after the folder.

    Raises:
        SearchError: If the folder's study is not there, or it is not known which one it is;
            lists those that are.
    """
    address, folder = read_address(run), run.resolve().name
    studies = {study.study_name: study._study_id for study in storage.get_all_studies()}
    own = location.path == run.resolve() / DATABASE
    # a folder of an earlier version whose storage is elsewhere
    begun = (run / "status.json").is_file() and not (run / DATABASE).is_file()
    if address is not None and (address.name in studies or location.kind == "other"):
        return address.name
    if address is None and not own and folder in studies:
        return folder
    if len(studies) == 1 and (own or (address is None and (begun or not write))):
        return next(iter(studies))
    if not studies and (own or address is None):
        return folder if address is None else address.name
    if write and address is None and not own and not begun:
        return folder
    shown = [f"{name!r} ({storage.get_n_trials(key)} trials)" for name, key in studies.items()]
    listed = ", ".join([*shown[:LISTED], *(["..."] if len(shown) > LISTED else [])])
    if address is not None and not own:
        raise SearchError(
            f"{run} belongs to the study {address.name!r}, which {location.shown} does not hold "
            f"(it holds {listed or 'none'}); name the storage that does, or choose another run "
            "folder"
        )
    raise SearchError(
        f"{location.shown} holds {len(studies)} studies: {listed}. Say which one is this run's: "
        f'echo \'{{"study": "{next(iter(studies))}"}}\' > {run / FILE}'
    )
