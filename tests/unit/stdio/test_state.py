"""What a logger notes down, and finds again."""

from pathlib import Path

import pytest

from zos_cri.errors import InvalidArgument
from zos_cri.stdio.messages import LogSpec
from zos_cri.stdio.state import Saved, StateDir


def saved(name: str, inode: int = 3) -> Saved:
    spec = LogSpec(id=name, log_path="/l/0.log", log_root="/l", stdout="/f/o", stderr="/f/e")
    return Saved(spec=spec, inode=inode)


def test_what_is_saved_is_loaded_and_what_is_removed_is_not(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    state.save(saved("a"))
    state.save(saved("b"))
    state.save(saved("a", 4))
    state.remove("b")
    state.remove("b")
    assert list(StateDir(tmp_path / "state").load()) == [saved("a", 4)]


def test_a_damaged_file_is_removed_and_the_rest_loaded(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.save(saved("a"))
    (tmp_path / "b.json").write_bytes(b'{"spec":{')
    assert list(state.load()) == [saved("a")]
    assert not (tmp_path / "b.json").exists()


def test_a_half_written_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.new").write_bytes(b"{")
    assert not list(StateDir(tmp_path).load())


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".", ".hidden", "x" * 129, "a\0"])
def test_ids_that_can_t_name_a_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument):
        StateDir(tmp_path).save(saved(name))


def test_parts_survive_and_go(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    part = state.part("a", "stdout")
    part.add(b"one ")
    part.add(b"two")
    again = state.part("a", "stdout")
    again.load()
    assert again.data == part.data == b"one two"
    again.clear()
    assert not list(tmp_path.iterdir())
    part.add(b"x")
    state.remove("a")
    assert not list(tmp_path.iterdir())
