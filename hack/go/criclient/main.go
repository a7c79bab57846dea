// criclient speaks to a server as the kubelet does, by k8s.io/cri-client: it reads the streams of
// lists and the stream of events. It prints one JSON object for each run, or for each event.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
)

const timeout = 30 * time.Second

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: criclient lists|unary|events|services ENDPOINT [COUNT]"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*timeout)
	defer cancel()
	var err error
	switch os.Args[1] {
	case "lists":
		err = lists(ctx, os.Args[2], true)
	case "unary":
		err = lists(ctx, os.Args[2], false)
	case "events":
		err = events(ctx, os.Args[2], os.Args[3:])
	case "services":
		err = services(ctx, os.Args[2])
	default:
		err = fmt.Errorf("no command %q", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(2)
}

func printJSON(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}

func runtimeService(ctx context.Context, endpoint string, streams bool) (internalapi.RuntimeService, error) {
	return criclient.NewRemoteRuntimeServiceBuilder().
		WithEndpoint(endpoint).
		WithConnectionTimeout(timeout).
		WithUseStreaming(streams).
		Build(ctx)
}

// lists reads every list, by its stream or by its unary call, and prints the ids of what is in it.
func lists(ctx context.Context, endpoint string, streams bool) error {
	service, err := runtimeService(ctx, endpoint, streams)
	if err != nil {
		return err
	}
	images, err := criclient.NewRemoteImageServiceBuilder().
		WithEndpoint(endpoint).
		WithConnectionTimeout(timeout).
		WithUseStreaming(streams).
		Build(ctx)
	if err != nil {
		return err
	}
	found := map[string][]string{}
	read := []struct {
		name string
		ids  func() ([]string, error)
	}{
		{"pods", func() ([]string, error) {
			items, err := service.ListPodSandbox(ctx, nil)
			return ids(items, (*runtimeapi.PodSandbox).GetId), err
		}},
		{"containers", func() ([]string, error) {
			items, err := service.ListContainers(ctx, nil)
			return ids(items, (*runtimeapi.Container).GetId), err
		}},
		{"container stats", func() ([]string, error) {
			items, err := service.ListContainerStats(ctx, nil)
			return ids(items, func(s *runtimeapi.ContainerStats) string { return s.GetAttributes().GetId() }), err
		}},
		{"pod stats", func() ([]string, error) {
			items, err := service.ListPodSandboxStats(ctx, nil)
			return ids(items, func(s *runtimeapi.PodSandboxStats) string { return s.GetAttributes().GetId() }), err
		}},
		{"pod metrics", func() ([]string, error) {
			items, err := service.ListPodSandboxMetrics(ctx)
			return ids(items, (*runtimeapi.PodSandboxMetrics).GetPodSandboxId), err
		}},
		{"images", func() ([]string, error) {
			items, err := images.ListImages(ctx, nil)
			return ids(items, (*runtimeapi.Image).GetId), err
		}},
	}
	for _, list := range read {
		if found[list.name], err = list.ids(); err != nil {
			return fmt.Errorf("%s: %w", list.name, err)
		}
	}
	return printJSON(found)
}

func ids[T any](items []T, id func(T) string) []string {
	found := []string{}
	for _, item := range items {
		found = append(found, id(item))
	}
	return found
}

type event struct {
	Container  string   `json:"container"`
	Kind       string   `json:"kind"`
	Time       int64    `json:"time"`
	Pod        string   `json:"pod"`
	PodState   string   `json:"pod_state"`
	Containers []string `json:"containers"`
}

// events prints "subscribed" once it is, and then each event, until there were COUNT.
func events(ctx context.Context, endpoint string, arguments []string) error {
	if len(arguments) != 1 {
		return fmt.Errorf("events: how many?")
	}
	count, err := strconv.Atoi(arguments[0])
	if err != nil {
		return err
	}
	service, err := runtimeService(ctx, endpoint, true)
	if err != nil {
		return err
	}
	told := make(chan *runtimeapi.ContainerEventResponse)
	ended := make(chan error, 1)
	go func() {
		ended <- service.GetContainerEvents(ctx, told, func(stream runtimeapi.RuntimeService_GetContainerEventsClient) {
			if _, err := stream.Header(); err == nil {
				_ = printJSON("subscribed")
			}
		})
	}()
	for ; count > 0; count-- {
		select {
		case err := <-ended:
			return err
		case response := <-told:
			if err := printJSON(summary(response)); err != nil {
				return err
			}
		}
	}
	return nil
}

func summary(response *runtimeapi.ContainerEventResponse) event {
	states := []string{}
	for _, status := range response.GetContainersStatuses() {
		states = append(states, status.GetState().String())
	}
	return event{
		Container:  response.GetContainerId(),
		Kind:       response.GetContainerEventType().String(),
		Time:       response.GetCreatedAt(),
		Pod:        response.GetPodSandboxStatus().GetId(),
		PodState:   response.GetPodSandboxStatus().GetState().String(),
		Containers: states,
	}
}
