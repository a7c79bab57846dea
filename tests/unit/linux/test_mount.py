from __future__ import annotations

import contextlib
import errno
import os

import pytest

from tests.descriptors import open_descriptors
from zos_cri.errors import InvalidArgument
from zos_cri.linux import mount as mounts
from zos_cri.linux import syscalls
from zos_cri.linux.mount import Busy, Mount, MountError, mount, unmount, unmount_tree

root = pytest.mark.root


def tmpfs(*options: str) -> Mount:
    return Mount(type="tmpfs", source="tmpfs", options=options)


def bind(source, *options: str) -> Mount:
    return Mount(type="none", source=str(source), options=("bind", *options))


@pytest.fixture
def place(tmp_path):
    """A directory on a private tmpfs: /tmp may be shared with other namespaces, and be any kind."""
    base = tmp_path / "base"
    base.mkdir()
    mount(tmpfs("rprivate"), str(base))
    yield base
    unmount_tree(str(base), lazy=True)
    assert mounts.mounts_below(str(base)) == []


def only(path) -> mounts.MountInfo:
    [info] = [m for m in mounts.mounts_below(str(path)) if m.target == str(path)]
    return info


# parsing


def test_options_are_sorted():
    options = mounts.parse_options(
        ["ro", "nosuid", "size=64k", "rprivate", "slave", "defaults", "", "mode=1777"]
    )
    assert options.flags == syscalls.MS_RDONLY | syscalls.MS_NOSUID
    assert options.propagation == (syscalls.MS_PRIVATE | syscalls.MS_REC, syscalls.MS_SLAVE)
    assert options.data == ("size=64k", "mode=1777")
    assert not options.bind


def test_the_later_option_wins():
    assert mounts.parse_options(["ro", "noexec", "rw"]).flags == syscalls.MS_NOEXEC
    assert mounts.parse_options(["rw", "ro"]).flags == syscalls.MS_RDONLY
    noatime = mounts.parse_options(["bind", "strictatime", "noatime"]).attributes
    assert noatime == (syscalls.MOUNT_ATTR_NOATIME, syscalls.MOUNT_ATTR__ATIME)
    assert mounts.parse_options(["noatime", "relatime"]).attributes == (
        0,
        syscalls.MOUNT_ATTR__ATIME,
    )


def test_recursive_attributes_are_not_mistaken_for_others():
    options = mounts.parse_options(["rbind", "rro", "rnoexec", "relatime"])
    assert options.rbind
    assert options.recursive == (syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOEXEC, 0)
    assert options.flags == syscalls.MS_RELATIME
    assert mounts.parse_options(["rrw"]).recursive == (0, syscalls.MOUNT_ATTR_RDONLY)


def test_a_line_of_mountinfo():
    info = mounts.parse_mountinfo(
        r"36 35 98:0 /a\040b /m\134\011x rw,noatime shared:3 master:1 propagate_from:2 - ext3 "
        r"/dev/r\040t rw,errors=continue"
    )
    assert (info.id, info.parent, info.root, info.target) == (36, 35, "/a b", "/m\\\tx")
    assert (info.shared, info.master, info.unbindable) == (3, 1, False)
    assert (info.type, info.source) == ("ext3", "/dev/r t")
    assert info.super_options == ("rw", "errors=continue")
    plain = mounts.parse_mountinfo("1 0 0:1 / / rw unbindable - tmpfs  rw")
    assert (plain.unbindable, plain.shared, plain.source) == (True, None, "")


def test_layers_with_colons():
    assert mounts.split_layers(r"/a:/b\:c:/d\\e") == ["/a", "/b:c", "/d\\e"]
    assert mounts.split_layers("") == []


# on the kernel


@root
def test_flags_and_data_arrive(place):
    there = place / "t"
    there.mkdir()
    mount(tmpfs("nosuid", "nodev", "noexec", "mode=1777", "size=64k"), str(there))
    info = only(there)
    assert {"nosuid", "nodev", "noexec", "rw"} <= set(info.options)
    assert "size=64k" in info.super_options
    assert there.stat().st_mode & 0o7777 == 0o1777


@root
def test_a_read_only_bind_is_read_only_and_its_source_is_not(place):
    source, target = place / "s", place / "t"
    source.mkdir()
    target.mkdir()
    mount(bind(source, "ro", "noexec", "noatime"), str(target))
    assert {"ro", "noexec", "noatime"} <= set(only(target).options)
    with pytest.raises(OSError, match="Read-only"):
        (target / "x").touch()
    (source / "x").touch()
    assert (target / "x").exists()


@root
def test_a_bind_does_not_open_up_its_source(place):
    source, target = place / "s", place / "t"
    source.mkdir()
    target.mkdir()
    mount(tmpfs("ro", "nosuid"), str(source))
    mount(bind(source, "rw", "suid"), str(target))
    assert {"ro", "nosuid"} <= set(only(target).options)


@root
def test_a_bind_can_be_remounted(place):
    target = place / "t"
    target.mkdir()
    mount(bind(target, "ro", "nodev"), str(target))
    mount(Mount(type="none", source="", options=("remount", "bind", "rw")), str(target))
    assert {"rw", "nodev"} <= set(only(target).options)


@root
def test_a_file_can_be_bound(place):
    source, target = place / "s", place / "t"
    source.write_text("here")
    target.touch()
    mount(bind(source, "ro"), str(target))
    assert target.read_text() == "here"


@root
def test_recursive_and_top_attributes(place):
    source = place / "s"
    source.mkdir()
    mount(tmpfs(), str(source))
    (source / "below").mkdir()
    mount(tmpfs(), str(source / "below"))
    for name, options, expected in (
        ("plain", ("bind",), {"": "rw"}),
        ("top", ("rbind", "ro"), {"": "ro", "/below": "rw"}),
        ("all", ("rbind", "rro"), {"": "ro", "/below": "ro"}),
    ):
        target = place / name
        target.mkdir()
        mount(Mount(type="bind", source=str(source), options=options), str(target))
        found = {m.target[len(str(target)) :]: m.options for m in mounts.mounts_below(str(target))}
        assert {k: v[0] for k, v in found.items()} == expected


@root
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("rprivate", (False, False, False)),
        ("rshared", (True, False, False)),
        ("rslave", (False, True, False)),
        ("unbindable", (False, False, True)),
    ],
)
def test_propagation(place, mode, expected):
    source, target = place / "s", place / "t"
    source.mkdir()
    target.mkdir()
    mount(tmpfs("shared"), str(source))
    mount(bind(source, mode), str(target))
    info = only(target)
    assert (info.shared is not None, info.master is not None, info.unbindable) == expected


@root
def test_a_failed_propagation_unmounts_again(place, monkeypatch):
    there = place / "t"
    there.mkdir()
    real = syscalls.mount

    def fail(source, target, fstype, flags, data=None):
        if flags & syscalls.MS_SHARED:
            raise OSError(errno.ENOMEM, "no memory", target)
        real(source, target, fstype, flags, data)

    monkeypatch.setattr(syscalls, "mount", fail)
    with pytest.raises(MountError, match="no memory"):
        mount(tmpfs("shared"), str(there))
    assert mounts.mounts_below(str(there)) == []


@root
def test_errors_name_source_target_and_type(place):
    with pytest.raises(MountError, match=f"^mount /no/source at {place} .type none.: No such"):
        mount(bind("/no/source"), str(place))
    with pytest.raises(MountError) as caught:
        mount(bind(place), f"{place}/gone")
    assert str(caught.value).startswith(f"mount {place} at {place}/gone (type none): No such file")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(MountError, match=r"\(type nosuchfs\): No such device"):
        mount(Mount(type="nosuchfs", source="x"), str(place))
    with pytest.raises(InvalidArgument, match="5000 bytes of options"):
        mount(tmpfs("x" * 5000), str(place))
    with pytest.raises(InvalidArgument, match="only binds can be id-mapped"):
        mount(tmpfs(), str(place), userns=0)


@root
def test_propagation_can_be_set_later(place):
    with pytest.raises(InvalidArgument, match="no such mode 'ro'"):
        mounts.set_propagation(str(place), "ro")
    (place / "d").mkdir()
    with pytest.raises(MountError, match="Invalid argument"):
        mounts.set_propagation(str(place / "d"), "private")
    mounts.set_propagation(str(place), "shared")
    assert only(place).shared is not None


@root
def test_a_private_directory_is_made_once(place):
    mounts.set_propagation(str(place), "shared")
    there = place / "run" / "pods"
    mounts.make_private_dir(str(there))
    mounts.make_private_dir(str(there))
    assert only(there).shared is None  # `only` fails where there are two


@root
def test_unmount_of_nothing_is_nothing(place):
    (place / "d").mkdir()
    unmount(str(place / "d"))
    unmount(str(place / "gone"))
    unmount_tree(str(place / "gone"))


@root
def test_a_busy_mount_is_named_and_lazy_takes_it(place):
    there = place / "t"
    there.mkdir()
    mount(tmpfs(), str(there))
    with open(there / "f", "w"):
        with pytest.raises(Busy, match=f"^unmount {there}: something still uses it"):
            unmount(str(there))
        unmount(str(there), lazy=True)
    assert mounts.mounts_below(str(there)) == []


@root
def test_unmount_does_not_follow_a_link(place):
    there = place / "t"
    there.mkdir()
    mount(tmpfs(), str(there))
    (place / "link").symlink_to(there)
    unmount(str(place / "link"))
    assert only(there)


@root
def test_other_refusals_of_unmount(monkeypatch):
    def refuse(target, _flags):
        raise OSError(errno.EPERM, "not permitted", target)

    monkeypatch.setattr(syscalls, "umount2", refuse)
    with pytest.raises(MountError, match="unmount /x: not permitted"):
        unmount("/x")


@root
def test_a_tree_goes_with_stacked_and_odd_names(place):
    odd = place / "t r\n\\ee"
    odd.mkdir()
    for _ in range(2):
        mount(tmpfs(), str(odd))
    (odd / "a" / "b").mkdir(parents=True)
    mount(tmpfs(), str(odd / "a"))
    (odd / "a" / "b").mkdir()
    mount(tmpfs(), str(odd / "a" / "b"))
    (place / "t r").mkdir()
    mount(tmpfs(), str(place / "t r"))  # beside it, not below
    assert len(mounts.mounts_below(str(odd))) == 4
    unmount_tree(str(odd))
    assert mounts.mounts_below(str(odd)) == []
    assert only(place / "t r")


def test_a_tree_that_grows_again_is_given_up(monkeypatch):
    monkeypatch.setattr(mounts, "_mountinfo", lambda: [b"1 0 0:1 / /x/y rw - tmpfs t rw"])
    monkeypatch.setattr(syscalls, "umount2", lambda *_args: None)
    with pytest.raises(Busy, match="1 mounts keep coming back"):
        unmount_tree("/x")


@root
def test_a_place_with_blanks_and_backslashes_is_found(place):
    there = place / "a b\tc\\d"
    there.mkdir()
    mount(tmpfs("size=4k"), str(there))
    assert [m.target for m in mounts.mounts_below(str(there))] == [str(there)]
    assert mounts.mounts_below(f"{place}/a") == []


@root
def test_mount_of_finds_the_topmost(place):
    there = place / "t"
    there.mkdir()
    mount(tmpfs("size=4k"), str(there))
    mount(tmpfs("size=8k"), str(there))
    assert mounts.mount_of(f"{there}/x/y").super_options[1] == "size=8k"
    assert mounts.mount_of(str(place / "tx")).target == str(place)
    assert mounts.mount_of("/").target == "/"


def test_mount_of_without_any(monkeypatch):
    monkeypatch.setattr(mounts, "all_mounts", list)
    with pytest.raises(Exception, match="no mount holds /x"):
        mounts.mount_of("/x")


# overlays


def overlay(place, count: int, *, name_length: int = 10, more: tuple[str, ...] = ()) -> Mount:
    layers = []
    for number in range(count):
        layer = place / f"{number:0{name_length}d}"
        layer.mkdir()
        (layer / f"file{number}").write_text(str(number))
        (layer / "same").write_text(str(number))
        layers.append(str(layer))
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    dirs = (f"upperdir={place}/upper", f"workdir={place}/work")
    return Mount(
        type="overlay",
        source="overlay",
        options=(*more, f"lowerdir={':'.join(layers)}", *dirs),
    )


def check_overlay(place, count: int) -> None:
    merged = place / "merged"
    assert (merged / "same").read_text() == "0"  # the first layer is the topmost
    assert len(list(merged.glob("file*"))) == count
    (merged / "new").touch()
    assert (place / "upper" / "new").exists()


@root
def test_a_short_overlay(place):
    mount(overlay(place, 3), str(place / "merged"))
    check_overlay(place, 3)


@root
@pytest.mark.parametrize("lowerdir_plus", [True, False])
def test_an_overlay_beyond_a_page(place, monkeypatch, lowerdir_plus):
    if not lowerdir_plus:
        real = syscalls.fsconfig

        def old_kernel(fd, command, key=None, value=None):
            if key == "lowerdir+":
                raise OSError(errno.EINVAL, "invalid", value)
            real(fd, command, key, value)

        monkeypatch.setattr(syscalls, "fsconfig", old_kernel)
    m = overlay(place, 128, name_length=60, more=("nodev", "noatime", "volatile"))
    assert sum(map(len, m.options)) > 8000
    before = open_descriptors()
    mount(m, str(place / "merged"))
    assert open_descriptors() <= before
    check_overlay(place, 128)
    info = only(place / "merged")
    assert {"nodev", "noatime"} <= set(info.options)
    assert {"volatile", "fsync=volatile"} & set(info.super_options)  # by kernel


@root
def test_a_long_read_only_overlay(place):
    m = overlay(place, 100, name_length=60)
    lower = Mount(type="overlay", source="overlay", options=("ro", m.options[0]))
    mount(lower, str(place / "merged"))
    assert only(place / "merged").super_options[0] == "ro"


@root
def test_more_layers_than_an_old_kernel_takes(place, monkeypatch):
    monkeypatch.setattr(mounts, "_overlay_by_layer", lambda *_args: False)
    with pytest.raises(InvalidArgument, match=r"300 layers don't fit a page .*Linux 6\.7"):
        mount(overlay(place, 300), str(place / "merged"))


@root
def test_the_kernels_own_words_are_in_the_error(place):
    m = overlay(place, 100, name_length=60)
    bad = Mount(type="overlay", source="overlay", options=(*m.options, "nosuchoption=1"))
    with pytest.raises(MountError, match=r"Invalid argument \(.*nosuchoption"):
        mount(bad, str(place / "merged"))


@root
def test_a_missing_layer_is_named(place):
    m = overlay(place, 100, name_length=60)
    os.rename(place / f"{50:060d}", place / "elsewhere")
    with pytest.raises(MountError, match=f"{50:060d}"):
        mount(m, str(place / "merged"))
    with contextlib.suppress(MountError):
        unmount(str(place / "merged"))
