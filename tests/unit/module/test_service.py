from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri._pb import container_pb2 as pb
from zos_cri.module.model import Container, Inspection, MountInfo, Network
from zos_cri.module.service import (
    ModuleService,
    from_pb,
    inspection_from_pb,
    inspection_pb,
    to_pb,
)
from zos_cri.store.lifecycle import ContainerState

text = st.text(string.printable, max_size=8)
mounts = st.builds(
    MountInfo, source=text, target=text, type=text, options=st.lists(text, max_size=2).map(tuple)
)
containers = st.builds(
    Container,
    id=text,
    name=text,
    flist=text,
    network=st.builds(Network, namespace=text),
    entrypoint=text,
    tags=st.dictionaries(text, text, max_size=2),
    env=st.dictionaries(text, text, max_size=2),
    mounts=st.lists(mounts, max_size=2).map(tuple),
    working_dir=text.filter(bool),
    cpu=st.floats(0, 100),
    memory=st.integers(0, 2**63),
    interactive=st.booleans(),
    elevated=st.booleans(),
    shutdown_timeout=st.floats(0.1, 100),
)


@given(containers)
def test_a_container_there_and_back(container):
    message = pb.Container.FromString(to_pb(container).SerializeToString())
    assert from_pb(message) == container


def test_what_is_left_out_has_the_defaults():
    container = from_pb(pb.Container(name="x"))
    assert container == Container(name="x", flist="", network=Network(""), entrypoint="")
    assert (container.working_dir, container.shutdown_timeout) == ("/", 5.0)


@pytest.mark.parametrize("state", ContainerState)
def test_an_inspection_there_and_back(state):
    inspection = Inspection(
        ns="ns",
        container=Container(name="x", flist="/", network=Network("n"), entrypoint="x"),
        state=state.value,
        pid=1,
        created_at=2,
        started_at=3,
        finished_at=4,
        exit_code=5,
        reason="Error",
        message="m",
        log_path="/l",
    )
    back = inspection_from_pb(inspection_pb(inspection))
    expected = {
        "creating": "created",
        "starting": "created",
        "removing": "exited",
    }.get(state.value, state.value)
    assert back.state == expected
    assert (back.ns, back.container) == (inspection.ns, inspection.container)
    assert (back.pid, back.exit_code, back.finished_at, back.log_path) == (1, 5, 4, "/l")


def test_every_method_is_offered():
    service = ModuleService(None)  # type: ignore[arg-type]
    offered = {**service.unary, **service.streams}
    methods = {m.name for m in pb.DESCRIPTOR.services_by_name["ContainerModule"].methods}
    assert set(offered) == methods
    assert set(service.unary) >= ModuleService.READS
