from __future__ import annotations

import msgspec

from tests.unit.cri.test_views import container, sandbox
from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.views import Views
from zos_cri.store.db import Record
from zos_cri.store.lifecycle import ContainerState, SandboxState


def test_a_list_is_its_entries_one_after_the_other():
    views = Views()
    records = [container("a" * 64), container("b" * 64, config=pb.ContainerConfig())]
    answer = pb.ListContainersResponse.FromString(views.containers.join(records))
    assert list(answer.containers) == [views.container(record) for record in records]
    assert views.containers.join([]) == b""
    pods = [sandbox("c" * 64), sandbox("d" * 64, state=SandboxState.STOPPING)]
    listed = pb.ListPodSandboxResponse.FromString(views.sandboxes.join(pods))
    assert list(listed.items) == [views.sandbox(record) for record in pods]


def test_a_record_is_encoded_once_until_it_is_replaced():
    views = Views()
    record = container()
    first = views.statuses.get(record)
    assert views.statuses.get(record) is first
    ended = Record(record.meta, msgspec.structs.replace(record.status, state=ContainerState.EXITED))
    status = pb.ContainerStatusResponse.FromString(views.statuses.get(ended)).status
    assert status.state == pb.CONTAINER_EXITED
    assert views.statuses.get(record) == first


def test_what_is_gone_is_forgotten():
    views = Views()
    record, pod = container(), sandbox()
    kept = (views.containers, views.statuses, views.sandboxes, views.sandbox_statuses)
    for each in kept:
        each.get(record if each in kept[:2] else pod)
    assert [len(each) for each in kept] == [1, 1, 1, 1]
    views.forget(record.meta.id)
    views.forget(pod.meta.id)
    assert [len(each) for each in kept] == [0, 0, 0, 0]
