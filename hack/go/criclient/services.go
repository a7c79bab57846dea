package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

// services asks gRPC's own services: how the server is, what else it serves, and in which files
// CRI's runtime service is described.
func services(ctx context.Context, endpoint string) error {
	connection, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	watch, err := health.NewHealthClient(connection).Watch(ctx, &health.HealthCheckRequest{})
	if err != nil {
		return err
	}
	for status := health.HealthCheckResponse_UNKNOWN; status != health.HealthCheckResponse_SERVING; {
		response, err := watch.Recv()
		if err != nil {
			return err
		}
		status = response.GetStatus()
	}
	check, err := health.NewHealthClient(connection).Check(
		ctx, &health.HealthCheckRequest{Service: "runtime.v1.RuntimeService"})
	if err != nil {
		return err
	}
	stream, err := reflection.NewServerReflectionClient(connection).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	list, err := reflect(stream, &reflection.ServerReflectionRequest{
		MessageRequest: &reflection.ServerReflectionRequest_ListServices{ListServices: "*"}})
	if err != nil {
		return err
	}
	names := []string{}
	for _, service := range list.GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	found, err := reflect(stream, &reflection.ServerReflectionRequest{
		MessageRequest: &reflection.ServerReflectionRequest_FileContainingSymbol{
			FileContainingSymbol: "runtime.v1.RuntimeService"}})
	if err != nil {
		return err
	}
	messages := 0
	for _, content := range found.GetFileDescriptorResponse().GetFileDescriptorProto() {
		file := &descriptorpb.FileDescriptorProto{}
		if err := proto.Unmarshal(content, file); err != nil {
			return err
		}
		messages += len(file.GetMessageType())
	}
	missing, err := reflect(stream, &reflection.ServerReflectionRequest{
		MessageRequest: &reflection.ServerReflectionRequest_FileByFilename{FileByFilename: "no.proto"}})
	if err != nil {
		return err
	}
	return printJSON(map[string]any{
		"status":   check.GetStatus().String(),
		"services": names,
		"messages": messages,
		"missing":  missing.GetErrorResponse().GetErrorCode(),
	})
}

func reflect(
	stream reflection.ServerReflection_ServerReflectionInfoClient, request *reflection.ServerReflectionRequest,
) (*reflection.ServerReflectionResponse, error) {
	if err := stream.Send(request); err != nil {
		return nil, fmt.Errorf("reflection: %w", err)
	}
	return stream.Recv()
}
