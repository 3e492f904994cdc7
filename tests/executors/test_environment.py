"""Everything is put back; what was loaded from a path travels by value."""

import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import cloudpickle
import pytest

from masksearch.executors.environment import (
    catch_interrupt,
    replace_attribute,
    set_environment,
)
from masksearch.executors.ray import own_token, temporary_storage
from masksearch.executors.worker import pickle_by_value
from masksearch.user_code import load_function


def test_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("KNOWN", "before")
    monkeypatch.setenv("RAY_GONE", "before")
    monkeypatch.delenv("FRESH", raising=False)
    with suppress(KeyError), set_environment({"KNOWN": "within", "FRESH": "1"}, ("RAY_",)):
        assert (os.environ["KNOWN"], os.environ["FRESH"]) == ("within", "1")
        os.environ["RAY_NEW"] = os.environ["OTHER_NEW"] = "1"
        del os.environ["RAY_GONE"]
        raise KeyError
    assert os.environ["KNOWN"] == os.environ["RAY_GONE"] == "before"
    assert "FRESH" not in os.environ
    assert "RAY_NEW" not in os.environ
    assert os.environ.pop("OTHER_NEW") == "1"  # not ours


def test_attributes_are_put_back():
    class Owner:
        name = "before"

    with replace_attribute(Owner, "name", "within"), replace_attribute(Owner, "unknown", 1):
        assert Owner.name == "within"
        assert not hasattr(Owner, "unknown")
    assert Owner.name == "before"


def test_shelves_are_removed(tmp_path):
    with temporary_storage(None) as (folder, name):
        assert not (Path(folder) / name).exists()
    assert not Path(folder).exists()
    for place in (str(tmp_path / "a"), f"file://{tmp_path}/b"):
        with temporary_storage(place) as (folder, name):
            (Path(folder.removeprefix("file://")) / name / "trial").mkdir(parents=True)
        assert list((tmp_path / place[-1]).iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_calls_and_the_second_raises(number):
    calls = []
    before = signal.getsignal(signal.SIGINT)
    with catch_interrupt(lambda: calls.append(1)):
        signal.raise_signal(number)
        assert calls == [1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert calls == [1]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_token_of_its_own_where_the_home_is_missing(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    assert len(own_token()["RAY_AUTH_TOKEN"]) == 64
    assert own_token() == own_token()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert own_token() == {}
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert own_token() == {}


def test_what_was_loaded_from_a_path_travels_by_value(tmp_path):
    file = tmp_path / "a_space_of_mine.py"
    file.write_text("FACTOR = 3\n\ndef triple(x):\n    return FACTOR * x\n")
    triple = load_function(f"{file}:triple")
    with pickle_by_value():
        text = cloudpickle.dumps(triple)
        assert "torch" not in cloudpickle.list_registry_pickle_by_value()
    assert cloudpickle.list_registry_pickle_by_value() == set()
    code = "import sys, pickle; print(pickle.load(sys.stdin.buffer)(14))"
    out = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, check=True)
    assert out.stdout.strip() == b"42"
    assert pickle.loads(text)(1) == 3


@pytest.mark.nightly
def test_modules_of_python_and_of_packages_do_not():
    code = (
        "from masksearch.executors.worker import pickle_by_value; import cloudpickle, torch\n"
        "with pickle_by_value(): print(sorted(cloudpickle.list_registry_pickle_by_value()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert out.stdout.strip() == b"[]"
