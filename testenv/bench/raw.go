package main

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// rawServer is a plain nats-server with JetStream that syncs every message, as the program's own does: what raw
// publishes are measured against. It runs until it is interrupted.
func rawServer(ctx context.Context, p part) (told, error) {
	s, err := server.NewServer(&server.Options{ServerName: "raw", Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true,
		JetStream: true, StoreDir: p.Dir, SyncAlways: true})
	if err != nil {
		return told{}, err
	}
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		return told{}, errors.New("the raw server did not start")
	}
	if err := tell(told{Address: s.ClientURL()}); err != nil {
		return told{}, err
	}
	<-ctx.Done()
	s.Shutdown()
	s.WaitForShutdown()
	return told{}, nil
}
