"""The folder that a restore works in."""

from __future__ import annotations

from pathlib import Path

import pytest

from compose.backup.restore import claimed
from schemas.errors import UserError


def test_one_restore_at_a_time_works_for_a_folder_and_what_an_interrupted_one_left_is_gone(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "new"
    left = tmp_path / "new.restoring" / "kafka" / "half"
    left.mkdir(parents=True)
    with claimed(data_dir) as folder:
        assert list(folder.iterdir()) == []
        (folder / "kept").touch()
        with pytest.raises(UserError, match="another restore is at work there"), claimed(data_dir):
            pass
        assert (folder / "kept").exists()
        folder.rename(data_dir)  # as a restore does at its end
    with claimed(data_dir) as folder:
        assert list(folder.iterdir()) == []
