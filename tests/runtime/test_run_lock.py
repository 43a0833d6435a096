"""A run folder has one run at a time."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from pipeline.runtime.run_lock import lock_run_dir
from shards.atomic import remove_abandoned, write_atomic


def test_a_second_run_is_refused_until_the_first_is_over(tmp_path: Path) -> None:
    lock = lock_run_dir(tmp_path)
    assert not os.get_inheritable(lock.fileno())
    with pytest.raises(ValueError, match=rf"run_dir: {tmp_path}: .*process {os.getpid()} on"):
        lock_run_dir(tmp_path)
    lock.close()
    again = lock_run_dir(tmp_path)
    assert (tmp_path / ".lock").read_text().count("process") == 1
    again.close()


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lock_run_dir(tmp_path).close()
    write_atomic(tmp_path / "config.yaml", b"whole")
    (tmp_path / ".somebody's.tmp").touch()
    remove_abandoned(tmp_path)  # may be in use: nobody can tell
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock", ".somebody's.tmp", "config.yaml"
    }  # fmt: skip
    assert f"run_dir: {tmp_path}: its file system has no locks" in capsys.readouterr().err
