// Command build writes the guest's disk image to a file: `go run ./testenv/guest/build -o guest.raw`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/tombolo-vdc/tombolo/testenv/guest"
)

func main() {
	out := flag.String("o", "guest.raw", "the image to write")
	data := flag.Int64("data", 0, "MiB of the data partition (0: 32)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	image, err := guest.Build(ctx, guest.Options{Data: *data << 20})
	if err == nil {
		err = image.CopyTo(*out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("%s: %d MiB, Linux %s\n", *out, image.Size>>20, image.Kernel)
}
