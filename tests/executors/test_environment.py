"""Everything is put back; what was loaded from a path travels by value."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from masksearch.executors.ray import (
    catch_interrupt,
    own_token,
)


def test_the_first_ctrl_c_calls_and_the_second_raises():
    calls = []
    before = signal.getsignal(signal.SIGINT)
    with catch_interrupt(lambda: calls.append(1)):
        signal.raise_signal(signal.SIGINT)
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


@pytest.mark.slow
def test_modules_of_python_and_of_packages_do_not():
    code = (
        "from masksearch.executors.worker import pickle_by_value; import cloudpickle, torch\n"
        "with pickle_by_value(): print(sorted(cloudpickle.list_registry_pickle_by_value()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert out.stdout.strip() == b"[]"
