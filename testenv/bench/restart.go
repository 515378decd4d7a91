package main

import "context"

func (b *bench) restartRows(ctx context.Context) error { return nil }
