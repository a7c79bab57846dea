// nriplugin is an NRI plugin that does as it is told: what it answers to each event stands in its
// configuration, and it writes a line for every call.
//
//	nriplugin [-socket PATH] [-name NAME] [-idx NN] [-script FILE]
//
// As an installed plugin it has all of that from the server, and the script as its configuration.
// A line on standard input is an UpdateContainersRequest in JSON, which it sends.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	validator "github.com/containerd/nri/plugins/default-validator"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// script says what the plugin does. Messages are protobuf's JSON.
type script struct {
	// Log is where lines are appended; standard output where it is empty.
	Log string `json:"log"`
	// Events, as nri's ParseEventMask takes them; all where it is empty.
	Events string `json:"events"`
	// Adjust and Update are the answer to CreateContainer, Changes to UpdateContainer, Stopped to
	// StopContainer, Synced to Synchronize.
	Adjust  json.RawMessage   `json:"adjust"`
	Update  []json.RawMessage `json:"update"`
	Changes []json.RawMessage `json:"changes"`
	Stopped []json.RawMessage `json:"stopped"`
	Synced  []json.RawMessage `json:"synced"`
	// Only: containers of this name are changed, others are left alone; empty: all.
	Only string `json:"only"`
	// Hang, Fail and Die name the event at which it doesn't answer, answers with an error, ends.
	Hang string `json:"hang"`
	Fail string `json:"fail"`
	Die  string `json:"die"`
	// Policy is a FailurePolicy.
	Policy json.RawMessage `json:"policy"`
	// Validator is upstream's default validator's configuration.
	Validator *validator.DefaultValidatorConfig `json:"validator"`
}

type plugin struct {
	mu     sync.Mutex
	script script
	out    *os.File
}

// line is what is written of a call.
type line struct {
	Event     string            `json:"event"`
	Pod       string            `json:"pod,omitempty"`
	PodName   string            `json:"pod_name,omitempty"`
	IPs       []string          `json:"ips,omitempty"`
	Netns     string            `json:"netns,omitempty"`
	Container string            `json:"container,omitempty"`
	Name      string            `json:"name,omitempty"`
	State     string            `json:"state,omitempty"`
	Pid       uint32            `json:"pid,omitempty"`
	Exit      int32             `json:"exit,omitempty"`
	Env       []string          `json:"env,omitempty"`
	Args      []string          `json:"args,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Pods      []string          `json:"pods,omitempty"`
	Ctrs      []string          `json:"containers,omitempty"`
	Limits    json.RawMessage   `json:"limits,omitempty"`
	Failed    []string          `json:"failed,omitempty"`
	Error     string            `json:"error,omitempty"`
	Config    string            `json:"config,omitempty"`
}

func (p *plugin) write(l line) {
	p.mu.Lock()
	defer p.mu.Unlock()
	data, err := json.Marshal(l)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(p.out, "%s\n", data)
}

func (p *plugin) note(event string, pod *api.PodSandbox, ctr *api.Container) line {
	l := line{Event: event, Pod: pod.GetId(), PodName: pod.GetName(), IPs: pod.GetIps()}
	for _, ns := range pod.GetLinux().GetNamespaces() {
		if ns.GetType() == "network" {
			l.Netns = ns.GetPath()
		}
	}
	if ctr != nil {
		l.Container, l.Name, l.Pid = ctr.GetId(), ctr.GetName(), ctr.GetPid()
		l.State, l.Exit = ctr.GetState().String(), ctr.GetExitCode()
		l.Env, l.Args, l.Labels = ctr.GetEnv(), ctr.GetArgs(), ctr.GetLabels()
	}
	return l
}

// act writes the line and does what the script has for this event.
func (p *plugin) act(ctx context.Context, l line) error {
	p.write(l)
	switch l.Event {
	case p.script.Hang:
		<-ctx.Done() // the deadline, or the end of the connection
		select {}
	case p.script.Fail:
		return errors.New("told to fail")
	case p.script.Die:
		os.Exit(3)
	}
	return nil
}

func (p *plugin) wanted(ctr *api.Container) bool {
	return p.script.Only == "" || p.script.Only == ctr.GetName()
}

func parse[M proto.Message](into M, data json.RawMessage) M {
	if err := protojson.Unmarshal(data, into); err != nil {
		panic(err)
	}
	return into
}

func updates(given []json.RawMessage) []*api.ContainerUpdate {
	var result []*api.ContainerUpdate
	for _, data := range given {
		result = append(result, parse(&api.ContainerUpdate{}, data))
	}
	return result
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (api.EventMask, error) {
	if config != "" {
		p.load([]byte(config))
	}
	p.write(line{Event: "Configure", Name: runtime, Config: config})
	if p.script.Events == "" {
		return 0, nil
	}
	return api.ParseEventMask(p.script.Events)
}

func (p *plugin) Synchronize(
	ctx context.Context, pods []*api.PodSandbox, ctrs []*api.Container,
) ([]*api.ContainerUpdate, error) {
	l := line{Event: "Synchronize"}
	for _, pod := range pods {
		l.Pods = append(l.Pods, pod.GetId())
	}
	for _, ctr := range ctrs {
		l.Ctrs = append(l.Ctrs, ctr.GetId())
	}
	return updates(p.script.Synced), p.act(ctx, l)
}

func (p *plugin) RunPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.act(ctx, p.note("RunPodSandbox", pod, nil))
}

func (p *plugin) StopPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.act(ctx, p.note("StopPodSandbox", pod, nil))
}

func (p *plugin) RemovePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.act(ctx, p.note("RemovePodSandbox", pod, nil))
}

func (p *plugin) UpdatePodSandbox(
	ctx context.Context, pod *api.PodSandbox, _, resources *api.LinuxResources,
) error {
	l := p.note("UpdatePodSandbox", pod, nil)
	l.Limits, _ = protojson.Marshal(resources)
	return p.act(ctx, l)
}

func (p *plugin) PostUpdatePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.act(ctx, p.note("PostUpdatePodSandbox", pod, nil))
}

func (p *plugin) CreateContainer(
	ctx context.Context, pod *api.PodSandbox, ctr *api.Container,
) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.act(ctx, p.note("CreateContainer", pod, ctr)); err != nil {
		return nil, nil, err
	}
	if !p.wanted(ctr) {
		return nil, nil, nil
	}
	var adjust *api.ContainerAdjustment
	if p.script.Adjust != nil {
		adjust = parse(&api.ContainerAdjustment{}, p.script.Adjust)
	}
	return adjust, updates(p.script.Update), nil
}

func (p *plugin) PostCreateContainer(ctx context.Context, pod *api.PodSandbox, ctr *api.Container) error {
	return p.act(ctx, p.note("PostCreateContainer", pod, ctr))
}

func (p *plugin) StartContainer(ctx context.Context, pod *api.PodSandbox, ctr *api.Container) error {
	return p.act(ctx, p.note("StartContainer", pod, ctr))
}

func (p *plugin) PostStartContainer(ctx context.Context, pod *api.PodSandbox, ctr *api.Container) error {
	return p.act(ctx, p.note("PostStartContainer", pod, ctr))
}

func (p *plugin) UpdateContainer(
	ctx context.Context, pod *api.PodSandbox, ctr *api.Container, resources *api.LinuxResources,
) ([]*api.ContainerUpdate, error) {
	l := p.note("UpdateContainer", pod, ctr)
	l.Limits, _ = protojson.Marshal(resources)
	if err := p.act(ctx, l); err != nil {
		return nil, err
	}
	result := updates(p.script.Changes)
	for _, update := range result {
		if update.GetContainerId() == "" {
			update.ContainerId = ctr.GetId()
		}
	}
	return result, nil
}

func (p *plugin) PostUpdateContainer(ctx context.Context, pod *api.PodSandbox, ctr *api.Container) error {
	return p.act(ctx, p.note("PostUpdateContainer", pod, ctr))
}

func (p *plugin) StopContainer(
	ctx context.Context, pod *api.PodSandbox, ctr *api.Container,
) ([]*api.ContainerUpdate, error) {
	return updates(p.script.Stopped), p.act(ctx, p.note("StopContainer", pod, ctr))
}

func (p *plugin) RemoveContainer(ctx context.Context, pod *api.PodSandbox, ctr *api.Container) error {
	return p.act(ctx, p.note("RemoveContainer", pod, ctr))
}

// validating is a plugin that may refuse what others want.
type validating struct {
	*plugin
}

func (v *validating) ValidateContainerAdjustment(
	ctx context.Context, req *api.ValidateContainerAdjustmentRequest,
) error {
	if err := v.act(ctx, v.note("ValidateContainerAdjustment", req.Pod, req.Container)); err != nil {
		return err
	}
	return validator.NewDefaultValidator(v.script.Validator).ValidateContainerAdjustment(ctx, req)
}

func (p *plugin) load(data []byte) {
	if err := json.Unmarshal(data, &p.script); err != nil {
		panic(err)
	}
	if p.script.Log == "" {
		return
	}
	out, err := os.OpenFile(p.script.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	p.out = out
}

// ask sends what comes on standard input.
func (p *plugin) ask(s stub.Stub) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		request := parse(&api.UpdateContainersRequest{}, lines.Bytes())
		failed, err := s.UpdateContainers(request.Update)
		l := line{Event: "UpdateContainers"}
		for _, update := range failed {
			l.Failed = append(l.Failed, update.GetContainerId())
		}
		if err != nil {
			l.Error = err.Error()
		}
		p.write(l)
	}
}

func main() {
	socket := flag.String("socket", "", "the server's socket")
	name := flag.String("name", "", "the plugin's name")
	index := flag.String("idx", "", "two digits")
	file := flag.String("script", "", "what to do")
	flag.Parse()
	p := &plugin{out: os.Stdout}
	if *file != "" {
		data, err := os.ReadFile(*file)
		if err != nil {
			panic(err)
		}
		p.load(data)
	}
	var options []stub.Option
	if *socket != "" {
		options = append(options, stub.WithSocketPath(*socket))
	}
	if *name != "" {
		options = append(options, stub.WithPluginName(*name), stub.WithPluginIdx(*index))
	}
	if p.script.Policy != nil {
		policy := parse(&api.FailurePolicy{}, p.script.Policy)
		options = append(options, stub.WithFailurePolicy(policy))
	}
	var handlers any = p
	if p.script.Validator != nil {
		handlers = &validating{p}
	}
	s, err := stub.New(handlers, options...)
	if err != nil {
		panic(err)
	}
	go p.ask(s)
	if err := s.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
