// A shim with the sandbox API (containerd.runtime.sandbox.v1), for tests of `sandboxer = "shim"`:
// what a virtual machine's shim is, without the machine.
//
// It is built on containerd's own shim library and has the tasks of its runc shim. Beside them it
// serves the sandbox service over a process, the sandbox, which is the first of a pid namespace and
// runs in the network namespace that it is told of. As with a machine nothing runs before it and
// nothing outlives it: a Create before StartSandbox is refused, and when the sandbox ends all its
// containers are killed.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task/plugin"
	"github.com/containerd/containerd/v2/pkg/shim"
	"golang.org/x/sys/unix"
)

const (
	// What the sandbox's process is called, and where in the bundle its pid is noted.
	holder  = "sandbox"
	pidFile = "sandbox.pid"
	// Where it says that it is what it should be: the first of a command's extra files.
	readyFile = 3
)

func init() {
	if filepath.Base(os.Args[0]) == holder {
		runtime.LockOSThread() // the network namespace is a thread's: this is the one /proc shows
	}
}

func main() {
	if filepath.Base(os.Args[0]) == holder {
		hold()
		return
	}
	shim.RunShim(context.Background(), sandboxManager{manager.NewShimManager("zos.sandbox.v1")})
}

// hold is the sandbox: it takes its orphans in, until it is killed or told to go.
func hold() {
	if len(os.Args) > 2 {
		file, err := os.Open(os.Args[2])
		if err != nil {
			os.Exit(1)
		}
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			os.Exit(1)
		}
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	orphans := make(chan os.Signal, 64)
	signal.Notify(orphans, syscall.SIGCHLD)
	ready := os.NewFile(readyFile, "ready")
	ready.Write([]byte{1})
	ready.Close()
	for {
		select {
		case <-ended:
			os.Exit(0)
		case <-orphans:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
					break
				}
			}
		}
	}
}

// sandboxManager is runc's, whose `delete` of a pod also ends its sandbox.
type sandboxManager struct {
	shim.Shim
}

func (m sandboxManager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return shim.StopStatus{}, err
	}
	killNoted(filepath.Join(filepath.Dir(cwd), id))
	return m.Shim.Stop(ctx, id)
}

// killNoted kills the sandbox of a bundle where one was left.
func killNoted(bundle string) {
	noted, err := os.ReadFile(filepath.Join(bundle, pidFile))
	if err != nil {
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(noted)))
	if err != nil {
		return
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// Pids are used again: it is ours only by its name and by the bundle that it runs in.
	line, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	at, _ := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
	if !strings.HasPrefix(string(line), holder+"\x00") || at != bundle {
		return
	}
	if unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
	}
}
