package main

import "context"

func (b *bench) readRows(ctx context.Context) error { return nil }
