from __future__ import annotations

from zos_cri._pb import nri_pb2 as pb
from zos_cri.nri import events


def test_there_is_a_call_for_every_event():
    assert {rpc.event for rpc in events.RPCS.values()} == set(pb.Event.values()) - {
        pb.UNKNOWN,
        pb.LAST,
    }
    service = pb.DESCRIPTOR.services_by_name["Plugin"]
    for rpc in events.RPCS.values():
        method = service.methods_by_name[rpc.name]
        assert method.output_type is rpc.response.DESCRIPTOR
    assert sum(rpc.mask for rpc in events.RPCS.values()) == events.ALL_EVENTS
    assert service.full_name == events.SERVICE
    assert pb.DESCRIPTOR.services_by_name["Runtime"].full_name == events.RUNTIME


def test_a_pods_event_as_older_plugins_have_it():
    request = pb.RunPodSandboxRequest(pod=pb.PodSandbox(id="p"))
    event = events.state_change(events.RUN_POD, request)
    assert (event.event, event.pod.id, event.HasField("container")) == (1, "p", False)


def test_a_containers_event_as_older_plugins_have_it():
    request = pb.RemoveContainerRequest(pod=pb.PodSandbox(id="p"), container=pb.Container(id="c"))
    event = events.state_change(events.REMOVE, request)
    assert (event.event, event.pod.id, event.container.id) == (11, "p", "c")
