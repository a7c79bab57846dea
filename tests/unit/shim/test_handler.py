"""A handler's options as the shims read them."""

from __future__ import annotations

import pytest

from zos_cri import errors
from zos_cri._pb import runc_options_pb2, runtimeoptions_pb2
from zos_cri.shim.handler import Handler


def test_runc_options_have_a_bare_type_url() -> None:
    handler = Handler(
        runtime="/usr/bin/crun",
        root="/run/x",
        systemd_cgroup=True,
        shim_cgroup="/pods",
        options={"no_pivot_root": True},
    )
    options = handler.task_options(io_uid=1000, io_gid=1001)
    assert options.type_url == "containerd.runc.v1.Options"
    assert runc_options_pb2.Options.FromString(options.value) == runc_options_pb2.Options(
        binary_name="/usr/bin/crun",
        root="/run/x",
        systemd_cgroup=True,
        shim_cgroup="/pods",
        no_pivot_root=True,
        io_uid=1000,
        io_gid=1001,
    )


@pytest.mark.parametrize("options", [{"no_such_field": 1}, {"io_uid": "root"}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidArgument, match="handler 'h': options: "):
        Handler(name="h", options=options).task_options()


def test_a_configuration_file_for_other_shims() -> None:
    handler = Handler(config_path="/etc/kata.toml", config_type="kata")
    options = handler.task_options()
    assert options.type_url == "runtimeoptions.v1.Options"
    assert runtimeoptions_pb2.Options.FromString(options.value) == runtimeoptions_pb2.Options(
        type_url="kata", config_path="/etc/kata.toml"
    )


def test_a_shim_that_makes_sandboxes_has_its_containers_elsewhere() -> None:
    assert not Handler().makes_sandboxes
    machine = Handler(sandboxer="shim")
    assert machine.makes_sandboxes
    assert Handler().on_host
    assert not machine.on_host
