"""The system calls that a container may make by default: data, and nothing else.

What is missing here is refused with EPERM: kernel modules, kexec, clocks, swap, mounts, new
namespaces, io_uring, keys (add_key, request_key, keyctl are not per namespace), userfaultfd, bpf,
perf, NUMA policy, quotas, the old obscure ones. What a capability unlocks is allowed with that
capability, since the kernel itself checks the capability then. The facts are those of moby's and
containerd's documented default profiles and of the kernel's manual pages; names that a libseccomp
or a kernel doesn't know are passed over by the runtimes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


def _names(*lines: str) -> tuple[str, ...]:
    return tuple(sorted(name for line in lines for name in line.split()))


PROCESSES: Final = _names(
    "fork vfork execve execveat exit exit_group wait4 waitid waitpid pause restart_syscall",
    "getpid getppid gettid getpgid getpgrp getsid setpgid setsid set_tid_address",
    "pidfd_open pidfd_send_signal process_mrelease prctl seccomp rseq membarrier getcpu",
    "set_robust_list get_robust_list get_thread_area set_thread_area uretprobe",
    "landlock_add_rule landlock_create_ruleset landlock_restrict_self",
    "lsm_get_self_attr lsm_list_modules lsm_set_self_attr",
)
IDENTITY: Final = _names(
    "getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getgroups getgroups32",
    "getresuid getresuid32 getresgid getresgid32 setuid setuid32 setgid setgid32",
    "setreuid setreuid32 setregid setregid32 setresuid setresuid32 setresgid setresgid32",
    "setfsuid setfsuid32 setfsgid setfsgid32 setgroups setgroups32 capget capset",
)
SCHEDULING: Final = _names(
    "sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr",
    "sched_getparam sched_setparam sched_getscheduler sched_setscheduler",
    "sched_get_priority_max sched_get_priority_min",
    "sched_rr_get_interval sched_rr_get_interval_time64",
    "getpriority setpriority ioprio_get ioprio_set",
    "getrlimit setrlimit ugetrlimit prlimit64 getrusage sysinfo times uname",
)
SIGNALS: Final = _names(
    "kill tkill tgkill sigaltstack sigprocmask sigreturn signalfd signalfd4",
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend",
    "rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo",
)
TIME: Final = _names(
    # The adjtimex family reads for everyone and sets with CAP_SYS_TIME only: the kernel asks.
    "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64",
    "clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 gettimeofday time",
    "nanosleep alarm getitimer setitimer timer_create timer_delete timer_getoverrun",
    "timer_gettime timer_gettime64 timer_settime timer_settime64",
    "timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64",
)
MEMORY: Final = _names(
    "brk mmap mmap2 munmap mremap mprotect msync madvise mincore mseal map_shadow_stack",
    "mlock mlock2 mlockall munlock munlockall remap_file_pages",
    "memfd_create memfd_secret pkey_alloc pkey_free pkey_mprotect",
)
WAITING: Final = _names(
    "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old",
    "epoll_pwait epoll_pwait2 poll ppoll ppoll_time64 select _newselect pselect6",
    "pselect6_time64 eventfd eventfd2 inotify_init inotify_init1 inotify_add_watch",
    "inotify_rm_watch fanotify_mark",
    "futex futex_time64 futex_waitv futex_wait futex_wake futex_requeue",
    "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64",
)
FILES: Final = _names(
    "open openat openat2 creat close close_range dup dup2 dup3 pipe pipe2",
    "fcntl fcntl64 flock ioctl umask chdir fchdir getcwd",
    "read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek _llseek",
    "readahead fadvise64 fadvise64_64 cachestat splice tee vmsplice copy_file_range",
    "sendfile sendfile64 sync syncfs sync_file_range fsync fdatasync fallocate",
    "truncate truncate64 ftruncate ftruncate64",
    "stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx",
    "statfs statfs64 fstatfs fstatfs64 statmount listmount access faccessat faccessat2",
    "getdents getdents64 readlink readlinkat name_to_handle_at",
    "chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32",
    "utime utimes utimensat utimensat_time64 futimesat",
    "link linkat symlink symlinkat unlink unlinkat rename renameat renameat2",
    "mkdir mkdirat rmdir mknod mknodat",
    "getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat",
    "listxattr llistxattr flistxattr listxattrat",
    "removexattr lremovexattr fremovexattr removexattrat",
)
COMMUNICATION: Final = _names(
    "accept accept4 bind connect listen shutdown socketpair getsockname getpeername",
    "getsockopt setsockopt send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg",
    # Its arguments lie behind a pointer, where a filter can't look: 32-bit programs need it.
    "recvmmsg_time64 socketcall",
    "ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64",
    "shmat shmctl shmdt shmget mq_open mq_unlink mq_notify mq_getsetattr",
    "mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64",
    "getrandom",
)

ALWAYS: Final = (
    PROCESSES,
    IDENTITY,
    SCHEDULING,
    SIGNALS,
    TIME,
    MEMORY,
    WAITING,
    FILES,
    COMMUNICATION,
)
"""Groups that every container has."""

SINCE_KERNEL: Final[Mapping[tuple[int, int], tuple[str, ...]]] = {
    # Before 4.8 a tracer could change a system call's number after seccomp had looked at it.
    (4, 8): _names("ptrace process_vm_readv process_vm_writev"),
}

BY_ARCHITECTURE: Final[Mapping[str, tuple[str, ...]]] = {
    "x86_64": _names("arch_prctl modify_ldt"),
    "i686": _names("modify_ldt"),
    "aarch64": _names("arm_fadvise64_64 arm_sync_file_range sync_file_range2"),
    "armv7l": _names("arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint")
    + _names("cacheflush set_tls"),
    "ppc64le": _names("sync_file_range2 swapcontext"),
    "s390x": _names("s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    "riscv64": _names("riscv_flush_icache riscv_hwprobe"),
}

BY_CAPABILITY: Final[Mapping[str, tuple[str, ...]]] = {
    "CAP_DAC_READ_SEARCH": _names("open_by_handle_at"),
    "CAP_SYS_ADMIN": _names(
        "mount umount umount2 mount_setattr move_mount open_tree",
        "fsconfig fsmount fsopen fspick quotactl quotactl_fd lookup_dcookie fanotify_init",
        "clone clone3 setns unshare sethostname setdomainname",
        "bpf perf_event_open syslog",
    ),
    "CAP_SYS_BOOT": _names("reboot"),
    "CAP_SYS_CHROOT": _names("chroot"),
    "CAP_SYS_MODULE": _names("init_module finit_module delete_module"),
    "CAP_SYS_PACCT": _names("acct"),
    "CAP_SYS_PTRACE": _names("kcmp pidfd_getfd process_madvise ptrace")
    + _names("process_vm_readv process_vm_writev"),
    "CAP_SYS_RAWIO": _names("iopl ioperm"),
    "CAP_SYS_TIME": _names("settimeofday stime clock_settime clock_settime64"),
    "CAP_SYS_TTY_CONFIG": _names("vhangup"),
    "CAP_SYS_NICE": _names("get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    "CAP_SYSLOG": _names("syslog"),
    "CAP_BPF": _names("bpf"),
    "CAP_PERFMON": _names("perf_event_open"),
}

ARCHITECTURES: Final[Mapping[str, tuple[str, ...]]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "i686": ("SCMP_ARCH_X86",),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "armv7l": ("SCMP_ARCH_ARM",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "loongarch64": ("SCMP_ARCH_LOONGARCH64",),
}
"""The ABIs that a kernel of this machine runs, each of which has numbers of its own."""

# linux/socket.h. Left out of what is allowed: AF_UNSPEC can't be made, AF_ALG (38) is a large
# piece of kernel for programs that have their own cryptography, AF_VSOCK (40) reaches across
# network namespaces to the host and its virtual machines.
SOCKET_FAMILIES_BELOW: Final = 38
SOCKET_FAMILIES: Final = (39, 41, 42, 43, 44, 45)  # NFC, KCM, QIPCRTR, SMC, XDP, MCTP

# sys/personality.h: PER_LINUX, PER_LINUX32, each with UNAME26, and the query.
PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

# sched.h: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
CLONE_NEW_NAMESPACES: Final = 0x7E020000
ENOSYS: Final = 38
