package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	cg1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cg2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	runc "github.com/containerd/go-runc"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	ready    = "SANDBOX_READY"
	notReady = "SANDBOX_NOTREADY"
	// The pod's configuration, as CRI servers send it.
	podConfig = "runtime.v1.PodSandboxConfig"
	// For tests of what goes wrong: a pod's annotation that names the call that is to fail.
	failing = "zos.test/fail"
	// Another: its containers' cgroups aren't where the host looks for them, as a machine's aren't.
	guest = "zos.test/guest"
)

func init() {
	registry.Register(&plugin.Registration{
		Type: plugins.TTRPCPlugin,
		ID:   "sandbox",
		Requires: []plugin.Type{
			plugins.InternalPlugin,
		},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			given, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			return &service{
				ctx:   ic.Context,
				down:  given.(shutdown.Service),
				tasks: make(map[string]struct{}),
				ended: make(chan struct{}),
				set:   ic,
			}, nil
		},
	})
}

// service is the one sandbox of this shim.
type service struct {
	ctx  context.Context
	down shutdown.Service
	set  *plugin.InitContext

	mu        sync.Mutex
	id        string
	bundle    string
	netns     string
	fail      string
	guest     bool
	pid       int
	createdAt time.Time
	tasks     map[string]struct{}

	ended    chan struct{} // closed with the sandbox; what follows is set by then
	status   int
	exitedAt time.Time
}

func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	api.RegisterTTRPCSandboxService(server, s)
	return nil
}

// UnaryServerInterceptor notes the tasks, and refuses them where there is no sandbox.
func (s *service) UnaryServerInterceptor() ttrpc.UnaryServerInterceptor {
	return func(
		ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method,
	) (any, error) {
		id := ""
		answer, err := method(ctx, func(request any) error {
			if err := unmarshal(request); err != nil {
				return err
			}
			switch r := request.(type) {
			case *taskAPI.CreateTaskRequest:
				if !s.runs() {
					return errgrpc.ToGRPC(fmt.Errorf("task %s: the sandbox doesn't run: %w", r.ID, errdefs.ErrFailedPrecondition))
				}
				id = r.ID
				if s.guest {
					return errgrpc.ToGRPC(hideCgroup(filepath.Join(r.Bundle, "config.json")))
				}
			case *taskAPI.ShutdownRequest:
				return errgrpc.ToGRPC(fmt.Errorf("ShutdownSandbox ends this shim: %w", errdefs.ErrFailedPrecondition))
			}
			return nil
		})
		if id != "" && err == nil {
			s.mu.Lock()
			s.tasks[id] = struct{}{}
			s.mu.Unlock()
		}
		return answer, err
	}
}

// hideCgroup gives a container another cgroup than its specification says.
func hideCgroup(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	linux, ok := spec["linux"].(map[string]any)
	if !ok {
		return fmt.Errorf("%s: has no linux: %w", path, errdefs.ErrInvalidArgument)
	}
	linux["cgroupsPath"] = fmt.Sprint(linux["cgroupsPath"], "-guest")
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func (s *service) runs() bool {
	select {
	case <-s.ended:
		return false
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid != 0
}

// of says what is wrong with a call for a sandbox, if anything is.
func (s *service) of(call, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != s.id || s.id == "" {
		return errgrpc.ToGRPC(fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound))
	}
	if s.fail == call {
		return errgrpc.ToGRPC(fmt.Errorf("%s was told to fail: %w", call, errdefs.ErrInternal))
	}
	return nil
}

func (s *service) CreateSandbox(
	ctx context.Context, r *api.CreateSandboxRequest,
) (*api.CreateSandboxResponse, error) {
	s.mu.Lock()
	if s.id != "" {
		s.mu.Unlock()
		return nil, errgrpc.ToGRPC(fmt.Errorf("sandbox %s: %w", s.id, errdefs.ErrAlreadyExists))
	}
	if url := r.GetOptions().GetTypeUrl(); url != podConfig {
		s.mu.Unlock()
		return nil, errgrpc.ToGRPC(fmt.Errorf("options %q aren't a pod's configuration: %w", url, errdefs.ErrInvalidArgument))
	}
	s.id, s.bundle, s.netns = r.SandboxID, r.BundlePath, r.NetnsPath
	s.fail, s.guest = r.Annotations[failing], r.Annotations[guest] != ""
	s.mu.Unlock()
	if r.NetnsPath != "" {
		if _, err := os.Stat(r.NetnsPath); err != nil {
			return nil, errgrpc.ToGRPC(err)
		}
	}
	if err := s.of("create", r.SandboxID); err != nil {
		return nil, err
	}
	return &api.CreateSandboxResponse{}, nil
}

func (s *service) StartSandbox(
	ctx context.Context, r *api.StartSandboxRequest,
) (*api.StartSandboxResponse, error) {
	if err := s.of("start", r.SandboxID); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid != 0 {
		return nil, errgrpc.ToGRPC(fmt.Errorf("sandbox %s runs: %w", s.id, errdefs.ErrFailedPrecondition))
	}
	command := exec.Command("/proc/self/exe")
	command.Args = []string{holder, s.bundle}
	if s.netns != "" {
		command.Args = append(command.Args, s.netns)
	}
	command.Dir = s.bundle
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setpgid: true}
	told, ready, err := os.Pipe()
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	defer told.Close()
	command.ExtraFiles = []*os.File{ready}
	exits, err := reaper.Default.Start(command)
	ready.Close()
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	s.pid, s.createdAt = command.Process.Pid, time.Now()
	go s.wait(command, exits)
	// It has started when it is in its network; where it ends before, the pipe ends with it.
	if _, err := told.Read(make([]byte, 1)); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("sandbox %s: %w", s.id, err))
	}
	noted := []byte(strconv.Itoa(s.pid))
	if err := os.WriteFile(filepath.Join(s.bundle, pidFile), noted, 0o600); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &api.StartSandboxResponse{
		Pid: uint32(s.pid), CreatedAt: timestamppb.New(s.createdAt),
	}, nil
}

func (s *service) wait(command *exec.Cmd, exits chan runc.Exit) {
	s.status, _ = reaper.Default.Wait(command, exits)
	s.exitedAt = time.Now()
	close(s.ended)
	// A machine's containers end with it.
	s.each(func(tasks taskAPI.TTRPCTaskService, id string) {
		tasks.Kill(s.ctx, &taskAPI.KillRequest{ID: id, Signal: uint32(syscall.SIGKILL), All: true})
	})
}

func (s *service) each(do func(tasks taskAPI.TTRPCTaskService, id string)) {
	found, err := s.set.GetByID(plugins.TTRPCPlugin, "task")
	if err != nil {
		return
	}
	s.mu.Lock()
	ids := make([]string, 0, len(s.tasks))
	for id := range s.tasks {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		do(found.(taskAPI.TTRPCTaskService), id)
	}
}

func (s *service) Platform(ctx context.Context, r *api.PlatformRequest) (*api.PlatformResponse, error) {
	if err := s.of("platform", r.SandboxID); err != nil {
		return nil, err
	}
	return &api.PlatformResponse{
		Platform: &types.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH},
	}, nil
}

func (s *service) StopSandbox(
	ctx context.Context, r *api.StopSandboxRequest,
) (*api.StopSandboxResponse, error) {
	if err := s.of("stop", r.SandboxID); err != nil {
		return nil, err
	}
	return &api.StopSandboxResponse{}, s.stop(time.Duration(r.TimeoutSecs) * time.Second)
}

func (s *service) stop(timeout time.Duration) error {
	s.mu.Lock()
	pid := s.pid
	s.mu.Unlock()
	if pid == 0 {
		return nil
	}
	for _, step := range []struct {
		signal syscall.Signal
		wait   time.Duration
	}{{syscall.SIGTERM, timeout}, {syscall.SIGKILL, 5 * time.Second}} {
		select {
		case <-s.ended:
			return nil
		default:
		}
		if err := syscall.Kill(pid, step.signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return errgrpc.ToGRPC(err)
		}
		select {
		case <-s.ended:
			return nil
		case <-time.After(step.wait):
		}
	}
	return errgrpc.ToGRPC(fmt.Errorf("sandbox %s outlives SIGKILL: %w", s.id, errdefs.ErrInternal))
}

func (s *service) WaitSandbox(
	ctx context.Context, r *api.WaitSandboxRequest,
) (*api.WaitSandboxResponse, error) {
	if err := s.of("wait", r.SandboxID); err != nil {
		return nil, err
	}
	select {
	case <-s.ended:
		return &api.WaitSandboxResponse{
			ExitStatus: uint32(s.status), ExitedAt: timestamppb.New(s.exitedAt),
		}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *service) SandboxStatus(
	ctx context.Context, r *api.SandboxStatusRequest,
) (*api.SandboxStatusResponse, error) {
	if err := s.of("status", r.SandboxID); err != nil {
		return nil, err
	}
	answer := &api.SandboxStatusResponse{SandboxID: r.SandboxID, State: notReady}
	if s.runs() {
		answer.State = ready
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	answer.Pid, answer.CreatedAt = uint32(s.pid), timestamppb.New(s.createdAt)
	if answer.State == notReady && s.pid != 0 {
		answer.ExitedAt = timestamppb.New(s.exitedAt)
	}
	if r.Verbose {
		answer.Info = map[string]string{
			"netns": s.netns, "bundle": s.bundle, "tasks": strconv.Itoa(len(s.tasks)),
		}
	}
	return answer, nil
}

func (s *service) PingSandbox(ctx context.Context, r *api.PingRequest) (*api.PingResponse, error) {
	return &api.PingResponse{}, nil
}

func (s *service) UpdateSandbox(
	ctx context.Context, r *api.UpdateSandboxRequest,
) (*api.UpdateSandboxResponse, error) {
	return nil, errgrpc.ToGRPC(errdefs.ErrNotImplemented)
}

func (s *service) ShutdownSandbox(
	ctx context.Context, r *api.ShutdownSandboxRequest,
) (*api.ShutdownSandboxResponse, error) {
	if err := s.of("shutdown", r.SandboxID); err != nil && !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		return nil, err
	}
	if err := s.stop(0); err != nil {
		return nil, err
	}
	s.down.Shutdown()
	return &api.ShutdownSandboxResponse{}, nil
}

// SandboxMetrics has the sum of what the containers use, as cgroup v2 counts it.
func (s *service) SandboxMetrics(
	ctx context.Context, r *api.SandboxMetricsRequest,
) (*api.SandboxMetricsResponse, error) {
	if err := s.of("metrics", r.SandboxID); err != nil {
		return nil, err
	}
	sum := &cg2.Metrics{CPU: &cg2.CPUStat{}, Memory: &cg2.MemoryStat{}, Pids: &cg2.PidsStat{}}
	s.each(func(tasks taskAPI.TTRPCTaskService, id string) {
		answer, err := tasks.Stats(ctx, &taskAPI.StatsRequest{ID: id})
		if err != nil {
			return
		}
		stats, err := typeurl.UnmarshalAny(answer.Stats)
		if err != nil {
			return
		}
		switch m := stats.(type) {
		case *cg1.Metrics:
			sum.CPU.UsageUsec += m.GetCPU().GetUsage().GetTotal() / 1000
			sum.Memory.Usage += m.GetMemory().GetUsage().GetUsage()
			sum.Memory.InactiveFile += m.GetMemory().GetTotalInactiveFile()
			sum.Memory.Anon += m.GetMemory().GetTotalRSS()
			sum.Pids.Current += m.GetPids().GetCurrent()
		case *cg2.Metrics:
			sum.CPU.UsageUsec += m.GetCPU().GetUsageUsec()
			sum.Memory.Usage += m.GetMemory().GetUsage()
			sum.Memory.InactiveFile += m.GetMemory().GetInactiveFile()
			sum.Memory.Anon += m.GetMemory().GetAnon()
			sum.Pids.Current += m.GetPids().GetCurrent()
		}
	})
	data, err := typeurl.MarshalAnyToProto(sum)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &api.SandboxMetricsResponse{
		Metrics: &types.Metric{Timestamp: timestamppb.Now(), ID: r.SandboxID, Data: data},
	}, nil
}
