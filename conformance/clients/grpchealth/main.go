// The standard gRPC health service of grpc-go, for probes: prints its port, then takes lines "SERVICE STATUS" from stdin.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	server, state := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, state)
	go server.Serve(listener)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		service, status, _ := strings.Cut(lines.Text(), " ")
		value := grpc_health_v1.HealthCheckResponse_ServingStatus_value[status]
		state.SetServingStatus(service, grpc_health_v1.HealthCheckResponse_ServingStatus(value))
		fmt.Println("set")
	}
}
