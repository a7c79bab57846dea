import re

from zos_cri._pb import cri_pb2 as pb
from zos_cri.stats import descriptors
from zos_cri.stats.descriptors import BASE_LABELS, DESCRIPTORS

# What critest and cAdvisor know, written as the reference has it.
NAMES = """
cpu_{usage,user,system}_seconds_total cpu_cfs_{periods,throttled_periods,throttled_seconds}_total
memory_{cache,rss,kernel_usage,mapped_file,swap,failcnt,usage_bytes,max_usage_bytes}
memory_{working_set_bytes,failures_total}
network_{receive,transmit}_{bytes,packets,packets_dropped,errors}_total
fs_{inodes_free,inodes_total,limit_bytes,usage_bytes}
fs_{reads_bytes_total,reads_total,writes_bytes_total,writes_total}
blkio_device_usage_total hugetlb_{usage,max_usage}_bytes
pressure_{cpu,memory,io}_{waiting,stalled}_seconds_total
spec_{cpu_period,cpu_quota,cpu_shares,memory_limit_bytes,memory_reservation_limit_bytes}
spec_memory_swap_limit_bytes processes threads threads_max sockets file_descriptors ulimits_soft
oom_events_total last_seen start_time_seconds
"""


def expanded(pattern: str) -> list[str]:
    braces = re.search(r"\{([^}]*)\}", pattern)
    if braces is None:
        return [pattern]
    begin, end = pattern[: braces.start()], pattern[braces.end() :]
    return [name for word in braces[1].split(",") for name in expanded(begin + word + end)]


def test_all_56_names() -> None:
    names = [f"container_{name}" for word in NAMES.split() for name in expanded(word)]
    assert len(set(names)) == len(names) == 56
    assert set(DESCRIPTORS) == set(names)


def test_every_one_says_what_it_is() -> None:
    found = descriptors.messages()
    assert len(found) == len(DESCRIPTORS)
    for message in found:
        assert message.help.endswith((".", "limit.", "none."))
        assert tuple(message.label_keys[: len(BASE_LABELS)]) == BASE_LABELS
        assert len(set(message.label_keys)) == len(message.label_keys)


def test_totals_are_counters() -> None:
    inodes = "container_fs_inodes_total"  # not a total of time, but of a disk
    for name, descriptor in DESCRIPTORS.items():
        if name.endswith("_total") and name != inodes:
            assert descriptor.type == pb.MetricType.COUNTER, name
    assert DESCRIPTORS[inodes].type == pb.MetricType.GAUGE
