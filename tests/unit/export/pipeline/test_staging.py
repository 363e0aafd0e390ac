from __future__ import annotations

from pathlib import Path

import pytest

from growtas.errors import OutputError
from growtas.export.pipeline.staging import removed_on_error, staging


def test_a_new_folder_goes_again_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), removed_on_error(tmp_path / "repo"):
        raise KeyboardInterrupt
    assert not (tmp_path / "repo").exists()
    with removed_on_error(tmp_path / "repo"):
        pass
    assert (tmp_path / "repo").is_dir()


def test_what_was_there_or_came_to_be_there_stays(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="broken"), removed_on_error(tmp_path / "old"):
        raise ValueError("broken")
    assert (tmp_path / "old").is_dir()
    with pytest.raises(ValueError, match="broken"), removed_on_error(tmp_path / "new"):
        (tmp_path / "new" / "somebody-s").touch()
        raise ValueError("broken")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["somebody-s"]


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"), removed_on_error(tmp_path / "file"):
        pass


def test_files_are_made_inside_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), staging(tmp_path / "out") as folder:
        assert folder.parent == tmp_path / "out"
        (folder / "half").touch()
        raise ValueError("broken")
    assert not (tmp_path / "out").exists()
