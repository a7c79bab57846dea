"""The distribution's CNI plugins, for real: bridges, addresses, host ports, and what is left after.

"The host" is a network namespace that each test makes and enters with its thread, since plugins act
on the namespace of whoever runs them: no bridge, address or rule reaches the machine's own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.fakes.cni import FakeCni
from zos_cri.linux import namespaces, spawn, syscalls
from zos_cri.network.cni import Network
from zos_cri.network.plugin import PluginFailed
from zos_cri.network.pod import Bandwidth, DnsConfig, PodNetwork, PortMapping, bandwidth_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

BIN: Final = Path("/usr/lib/cni")
GATEWAY, RANGE = "10.88.0.1", "10.88.0.0/24"
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (BIN / "bridge").exists(), reason="needs containernetworking-plugins"),
]


@pytest.fixture
def host() -> Iterator[None]:
    """The thread, and so its children, in a network namespace of the test's own."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.unshare(syscalls.CLONE_NEWNET)
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        yield
    finally:
        syscalls.setns(home, syscalls.CLONE_NEWNET)
        os.close(home)


class Node(FakeCni):
    """A node of a test: its configuration, and pods with pinned namespaces."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.directory = directory
        self.leases = directory / "leases"
        self._pods: list[str] = []
        self.cni = self.over()

    def over(self, **options: Any) -> Network:
        return Network(
            conf_dir=self.conf,
            bin_dirs=[self.bin, BIN],
            cache_dir=self.directory / "records",
            **options,
        )

    def bridge(self, *ranges: str, **keys: Any) -> dict[str, Any]:
        return {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.leases),
                "ranges": [[{"subnet": each}] for each in ranges or (RANGE,)],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        } | keys

    def usual(self, *more: Any, **keys: Any) -> None:
        """The configuration that most nodes have."""
        self.network(
            "net",
            self.bridge(),
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            {"type": "firewall"},
            *more,
            **{"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "1.1.0"], **keys},
        )

    async def pod(self, name: str, **fields: Any) -> PodNetwork:
        netns = str(self.directory / "pods" / name)
        await namespaces.pin({"net": netns}, timeout=20)
        self._pods.append(netns)
        return PodNetwork(id=name, name=name, namespace="default", netns=netns, **fields)

    async def close(self) -> None:
        for netns in self._pods:
            await namespaces.unpin(netns)

    def leased(self) -> list[str]:
        return sorted(
            path.name
            for path in self.leases.rglob("*")
            if path.name[:1].isdigit() or "fd" in path.name
        )

    async def rules(self, pod: str = "") -> list[str]:
        """The host's NAT and filter rules that speak of a pod, or of host ports at all."""
        found = []
        for program in ("iptables-save", "ip6tables-save"):
            text = (await sh(program)).splitlines()
            found += [line for line in text if pod and pod in line]
            found += [line for line in text if not pod and line[0] == "-" and "--dport" in line]
        return found

    async def assert_clean(self) -> None:
        """Nothing of any pod is left on the host."""
        assert self.leased() == []
        links = json.loads(await sh("ip", "-j", "link"))
        assert [link["ifname"] for link in links if link["ifname"] not in ("lo", "cni0")] == []
        text = await sh("iptables-save")
        assert "10.88.0." not in text.replace(RANGE, ""), text
        assert await self.rules() == []
        assert list((self.directory / "records").iterdir()) == []


async def sh(*argv: str) -> str:
    done = await spawn.run(argv, timeout=30)
    assert done.returncode == 0, done.failure()
    return done.stdout.decode()


@pytest.fixture
async def node(host: None, tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    try:
        yield made
    finally:
        await made.close()


def listener(family: int, port: int) -> socket.socket:
    """A listening socket in the namespace of the calling thread, wherever it is used then."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        sock.listen()
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


async def talks(pod: PodNetwork, address: str, port: int, *, to: int) -> bool:
    """Whether a TCP connection from the host to an address and port arrives at the pod's `to`."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = await namespaces.in_network(pod.netns, listener, family, to, timeout=10)
    with server, socket.socket(family, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            async with asyncio.timeout(5):
                await loop.sock_connect(client, (address, port))
                taken, _ = await loop.sock_accept(server)
        except (OSError, TimeoutError):
            return False
        taken.close()
        return True


async def test_a_pod_with_the_usual_configuration(node: Node) -> None:
    node.usual()
    pod = await node.pod("p1", port_mappings=(PortMapping(80, 8080, "TCP"), PortMapping(9, 0)))
    result = await node.cni.add(pod)
    (ip,) = result.ips
    assert ip.startswith("10.88.0.")
    assert node.leased() == [ip]
    assert next((i.name, bool(i.sandbox)) for i in result.interfaces) == ("cni0", False)
    assert json.loads(result.raw)[0]["cniVersion"] == "1.0.0"  # 1.1.0 is too new for the plugins
    assert await talks(pod, ip, 80, to=80)
    assert await talks(pod, GATEWAY, 8080, to=80)
    assert not await talks(pod, GATEWAY, 8081, to=81)
    await node.over().delete(pod)
    await node.assert_clean()
    await node.cni.delete(pod)


async def test_host_ports_of_each_protocol(node: Node) -> None:
    node.usual()
    pod = await node.pod(
        "p1",
        port_mappings=(
            PortMapping(53, 5353, "UDP"),
            PortMapping(7, 7777, "SCTP"),
            PortMapping(80, 8080, "TCP", GATEWAY),
        ),
    )
    await node.cni.add(pod)
    rules = "\n".join(await node.rules())
    assert "-p udp -m udp --dport 5353" in rules
    assert "-p sctp -m sctp --dport 7777" in rules
    assert f"-d {GATEWAY}/32 -p tcp -m tcp --dport 8080" in rules
    assert await talks(pod, GATEWAY, 8080, to=80)
    await node.cni.delete(pod)
    await node.assert_clean()


def datagrams(port: int) -> socket.socket:
    """A socket in the namespace of the calling thread that receives on a port."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))
    sock.setblocking(False)
    return sock


async def test_a_udp_port_and_one_of_an_address(node: Node) -> None:
    """What is sent to the host's port arrives; a port of one address is not one of another."""
    node.usual()
    await sh("ip", "addr", "add", "10.77.0.1/32", "dev", "lo")
    pod = await node.pod(
        "p1",
        port_mappings=(
            PortMapping(53, 5353, "UDP"),
            PortMapping(80, 8080, "TCP", "10.77.0.1"),
        ),
    )
    await node.cni.add(pod)
    loop = asyncio.get_running_loop()
    server = await namespaces.in_network(pod.netns, datagrams, 53, timeout=10)
    with server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        await loop.sock_sendto(client, b"asked", (GATEWAY, 5353))
        async with asyncio.timeout(5):
            data, sender = await loop.sock_recvfrom(server, 100)
            assert data == b"asked"
            await loop.sock_sendto(server, b"told", sender)
            assert await loop.sock_recv(client, 100) == b"told"
    assert await talks(pod, "10.77.0.1", 8080, to=80)
    assert not await talks(pod, GATEWAY, 8080, to=80)
    await node.cni.delete(pod)
    await node.assert_clean()


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="no IPv6 here")
async def test_host_ports_of_both_families(node: Node) -> None:
    bridge = node.bridge("fd00:88::/64", RANGE)
    bridge["ipam"]["routes"] += [{"dst": "::/0"}]
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    node.network("net", bridge, portmap)
    pod = await node.pod("p1", port_mappings=(PortMapping(80, 8080),))
    await node.cni.add(pod)
    async with asyncio.timeout(20):
        while "tentative" in await sh("ip", "-6", "addr", "show", "dev", "cni0"):
            await asyncio.sleep(0.05)
    rules = await node.rules()
    assert [line for line in rules if "--dport 8080" in line and "10.88.0." in line]
    assert [line for line in rules if "--dport 8080" in line and "fd00:88:" in line]
    assert await talks(pod, GATEWAY, 8080, to=80)
    assert await talks(pod, "fd00:88::1", 8080, to=80)
    await node.cni.delete(pod)
    await node.assert_clean()


async def test_the_nodes_ranges_names_and_resolver(node: Node) -> None:
    """host-local takes its addresses from the pod CIDR; who declares dns or aliases gets them."""
    bridge = node.bridge(capabilities={"ipRanges": True})
    del bridge["ipam"]["ranges"]
    node.plugin("names")
    names = {"type": "names", "capabilities": {"dns": True, "aliases": True}}
    node.network("net", bridge, names)
    await node.cni.set_pod_cidr("10.44.7.0/24")
    servers = DnsConfig(servers=("10.0.0.1",), searches=("a.b",), options=("ndots:5",))
    pod = await node.pod("p1", dns=servers, aliases=("p1", "web"))
    result = await node.cni.add(pod)
    assert result.ips[0].startswith("10.44.7.")
    (call,) = node.calls("ADD")
    assert call.request["runtimeConfig"] == {
        "dns": {"servers": ["10.0.0.1"], "searches": ["a.b"], "options": ["ndots:5"]},
        "aliases": ["p1", "web"],
    }
    await node.cni.delete(pod)
    assert node.leased() == []


async def test_bandwidth_of_both_directions(node: Node) -> None:
    node.usual({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    limits = bandwidth_of(
        {"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "4M"}
    )
    pod = await node.pod("p1", bandwidth=limits)
    await node.cni.add(pod)
    rates = await sh("tc", "qdisc")
    assert "rate 8Mbit" in rates
    assert "rate 4Mbit" in rates
    await node.cni.delete(pod)
    assert "rate" not in await sh("tc", "qdisc")
    await node.assert_clean()


async def test_many_pods_at_once(node: Node) -> None:
    node.usual()
    pods = [await node.pod(f"p{i}", port_mappings=(PortMapping(80, 9000 + i),)) for i in range(6)]
    results = await asyncio.gather(*(node.cni.add(pod) for pod in pods))
    assert len({result.ips[0] for result in results}) == 6
    assert node.leased() == sorted(result.ips[0] for result in results)
    await asyncio.gather(*(node.cni.delete(pod) for pod in pods))
    await node.assert_clean()


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="no IPv6 here")
async def test_dual_stack(node: Node) -> None:
    node.network("net", node.bridge("fd00:88::/64", RANGE))
    pod = await node.pod("p1")
    result = await node.cni.add(pod)
    assert [":" in ip for ip in result.ips] == [False, True]
    assert (await node.over(ip_preference="cni").result("p1")).ips == result.ips[::-1]  # type: ignore[union-attr]
    async with asyncio.timeout(
        20
    ):  # the bridge's own IPv6 address is tentative for a second or two
        while "tentative" in await sh("ip", "-6", "addr", "show", "dev", "cni0"):
            await asyncio.sleep(0.05)
    assert await talks(pod, result.ips[0], 80, to=80)
    assert await talks(pod, result.ips[1], 80, to=80)
    await node.cni.delete(pod)
    await node.assert_clean()


async def test_a_namespace_that_is_gone(node: Node) -> None:
    """As after a reboot: the addresses are released, the rules removed."""
    node.usual()
    pod = await node.pod("p1", port_mappings=(PortMapping(80, 8080),))
    await node.cni.add(pod)
    await namespaces.unpin(pod.netns)
    await node.over().delete(pod)
    assert node.leased() == []
    assert await node.rules() == []
    assert list((node.directory / "records").iterdir()) == []


async def test_an_add_that_fails_at_the_end_leaves_nothing(node: Node) -> None:
    error = {"code": 99, "msg": "not today"}
    node.plugin("last", ADD={"exit": 1, "result": error})
    node.usual("last", cniVersions=[])
    pod = await node.pod("p1", port_mappings=(PortMapping(80, 8080),))
    with pytest.raises(PluginFailed, match=r"network net: CNI plugin last: .*code 99: not today"):
        await node.cni.add(pod)
    await node.assert_clean()


async def test_a_server_killed_in_add_leaves_what_can_be_found(node: Node) -> None:
    node.plugin("last", ADD={"hang": True})
    node.usual("last", cniVersions=[])
    pod = await node.pod("p1", port_mappings=(PortMapping(80, 8080),))
    program = (
        "import asyncio, sys\n"
        "from zos_cri.network.cni import Network\n"
        "from zos_cri.network.pod import PodNetwork, PortMapping\n"
        "conf, bins, cache, netns = sys.argv[1:]\n"
        "network = Network(conf_dir=conf, bin_dirs=bins.split(':'), cache_dir=cache)\n"
        "pod = PodNetwork(id='p1', netns=netns, port_mappings=(PortMapping(80, 8080),))\n"
        "asyncio.run(network.add(pod))\n"
    )
    records = node.directory / "records"
    server = await spawn.start(
        [
            sys.executable,
            "-c",
            program,
            *map(str, (node.conf, f"{node.bin}:{BIN}", records, pod.netns)),
        ],
        cwd=Path(__file__).parents[2],
    )
    async with asyncio.timeout(60):
        while not node.calls("ADD"):
            await asyncio.sleep(0.01)
    server.kill()
    await server.wait(10)
    os.kill(node.calls("ADD")[0].pid, 9)
    assert node.leased() != []
    (left,) = await node.cni.pending()
    assert (left.container_id, left.complete) == ("p1", False)
    await node.cni.gc(list)
    await node.assert_clean()


async def test_no_address_left(node: Node) -> None:
    node.network("net", node.bridge("10.88.0.0/30"))
    first, second = await node.pod("p1"), await node.pod("p2")
    await node.cni.add(first)
    with pytest.raises(PluginFailed, match="no IP addresses available in range set"):
        await node.cni.add(second)
    await node.cni.delete(first)
    await node.cni.add(second)
    await node.cni.delete(second)
    await node.assert_clean()


async def test_check_sees_what_was_broken(node: Node) -> None:
    node.usual()
    pod = await node.pod("p1")
    await node.cni.add(pod)
    await node.cni.check(pod)
    await sh("nsenter", f"--net={pod.netns}", "ip", "route", "del", "default")
    with pytest.raises(PluginFailed, match="CNI plugin bridge: CHECK failed"):
        await node.cni.check(pod)
    await node.cni.delete(pod)
    await node.assert_clean()


async def test_a_second_network(node: Node) -> None:
    node.usual()
    ipam = {"type": "host-local", "dataDir": str(node.leases), "subnet": "10.99.0.0/24"}
    node.network("other", {"type": "ptp", "ipam": ipam}, file="20-other.conflist")
    both = node.over(max_conf_num=2)
    pod = await node.pod("p1")
    result = await both.add(pod)
    assert len(result.ips) == 1
    named = {i.name: i.addresses for i in result.interfaces if i.sandbox}
    assert named["eth0"][0].ip == result.ips[0]
    assert named["eth1"][0].ip.startswith("10.99.0.")
    await both.delete(pod)
    await node.assert_clean()


async def test_what_a_pod_asks_for(node: Node) -> None:
    """Address, hardware address and bandwidth, by the capabilities that plugins declare."""
    node.network(
        "net",
        node.bridge(ipam={"type": "static"}, capabilities={"ips": True, "mac": True}),
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    )
    mac = "02:00:00:00:00:77"
    pod = await node.pod(
        "p1",
        ips=("10.88.0.77/24",),
        mac=mac,
        bandwidth=Bandwidth(ingress_rate=8_000_000, ingress_burst=800_000),
    )
    result = await node.cni.add(pod)
    assert result.ips == ("10.88.0.77",)
    assert next(i.mac for i in result.interfaces if i.name == "eth0") == mac
    assert "tbf" in await sh("tc", "qdisc")
    await node.cni.delete(pod)
    await node.assert_clean()


async def test_what_an_add_costs(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours beside the plugins': printed, and bounded loosely."""
    spent: list[float] = []
    network = node.over(on_operation=lambda op, net, plugin, seconds, error: spent.append(seconds))
    node.usual(cniVersions=[], cniVersion="1.0.0")
    loop = asyncio.get_running_loop()
    own: list[float] = []
    for number in range(5):
        pod = await node.pod(f"p{number}")
        spent.clear()
        begun = loop.time()
        await network.add(pod)
        own.append(loop.time() - begun - sum(spent))
        plugins = sum(spent)
        await network.delete(pod)
    with capsys.disabled():
        print(f"\nADD of 3 plugins: {plugins * 1e3:.1f} ms theirs, {min(own) * 1e3:.2f} ms ours")
    assert min(own) < 0.1
    await node.assert_clean()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
async def test_the_machine_itself_is_untouched(tmp_path: Path) -> None:
    """Not in the fixture's namespace: what hack/netns keeps from the host, and cleans up."""
    script = Path(__file__).parents[2] / "hack" / "netns"
    before = await sh("ip", "-br", "link")
    inside = (
        "ip link add cni0 type bridge && echo 1 >/etc/cni/net.d/x && ls /var/lib/cni"
        " && iptables -A INPUT -j DROP && ip -br addr show lo && touch $0/done; exit 7"
    )
    done = await spawn.run(
        [str(script), "run", "bash", "-c", inside, str(tmp_path)],
        timeout=30,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 7
    assert b"127.0.0.1/8" in done.stdout
    assert await sh("ip", "-br", "link") == before
    assert not (Path("/etc/cni/net.d") / "x").exists()
    assert os.listdir(tmp_path) == ["done"]


@pytest.mark.parametrize("options", [(), ("--pids",)])
async def test_signals_reach_the_command(tmp_path: Path, options: tuple[str, ...]) -> None:
    script = Path(__file__).parents[2] / "hack" / "netns"
    ready = tmp_path / "ready"
    command = f"trap 'exit 5' TERM; touch {ready}; while true; do sleep 0.05; done"
    process = await spawn.start(
        [str(script), "run", *options, "bash", "-c", command],
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    async with asyncio.timeout(30):
        while not ready.exists():
            await asyncio.sleep(0.01)
    process.kill(15)
    assert await process.wait(20) == 5
    assert os.listdir(tmp_path) == ["ready"]
