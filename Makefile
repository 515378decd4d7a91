# What a person types. The default prints the targets; each is one line after ##.

# The tests use these programs besides Go, as program=Debian-package. Only what is missing is installed.
TEST_TOOLS = \
	mkfs.ext4=e2fsprogs \
	qemu-img=qemu-utils \
	node=nodejs \
	npm=npm \
	nbdinfo=libnbd-bin \
	openssl=openssl \
	virt-v2v=virt-v2v \
	rsync=rsync \
	unshare=util-linux \
	ip=iproute2 \
	qemu-system-x86_64=qemu-system-x86 \
	nft=nftables \
	curl=curl

# What the benchmarks and the real disks use besides. desync, a peer that Debian does not have, is used where it is in PATH.
BENCH_TOOLS = $(TEST_TOOLS) tc=iproute2 ethtool=ethtool casync=casync
REAL_TOOLS = $(TEST_TOOLS) mmdebstrap=mmdebstrap extlinux=extlinux e2fsck=e2fsprogs cmp=diffutils
DEMO_TOOLS = qemu-system-x86_64=qemu-system-x86 mkfs.ext4=e2fsprogs curl=curl

# Debian keeps mkfs and its like where an ordinary user's PATH does not look.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.PHONY: help build test race soak bench real demo-machines lint fmt generate go tools

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: go ## build ./tombolo
	go build -o tombolo ./cmd/tombolo

test: go tools ## install what the tests need beyond Go (root on Debian), then vet and test everything
	go vet ./...
	go test -timeout 60m ./...

race: go tools ## test everything under the race detector (needs a C compiler)
	go test -race -timeout 60m ./...

soak: go tools ## the long variants of testenv: 1000 replacements under readers while agents are killed (an hour at most)
	TOMBOLO_SOAK=1 go test -count=1 -timeout 90m -v ./testenv

bench: go ## measure against limits and peers, write docs/benchmarks.md; fails where a goal is missed (root, half an hour)
	@$(MAKE) --no-print-directory tools TEST_TOOLS="$(BENCH_TOOLS)"
	go run ./testenv/bench

real: go ## three real Debian disks through save, copies and replacement, write docs/real-disks.md (root, a mirror)
	@$(MAKE) --no-print-directory tools TEST_TOOLS="$(REAL_TOOLS)"
	go run ./testenv/real

demo-machines: go ## machines and networks that run, shown and told in under three minutes (DEMO="-keep -accelerator tcg" for its flags)
	@$(MAKE) --no-print-directory tools TEST_TOOLS="$(DEMO_TOOLS)"
	go run ./testenv/demomachines $(DEMO)

lint: go ## check the rules of the house only: import directions, vet, staticcheck, documents
	go test ./testenv/lint

fmt: go ## format the code and tidy go.mod
	gofmt -w .
	go mod tidy

generate: go ## write the generated files again
	go generate ./...

go:
	@command -v go >/dev/null || { echo "Go 1.26.3 or newer is needed: https://go.dev/dl/ (Debian's own package is older)" >&2; exit 1; }

tools:
	@missing=; \
	for tool in $(TEST_TOOLS); do \
		command -v "$${tool%%=*}" >/dev/null || missing="$$missing $${tool#*=}"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then \
		echo "skipped: installing the programs of these Debian packages, because there is no apt-get here:$$missing" >&2; \
	elif [ "$$(id -u)" -ne 0 ]; then \
		echo "skipped: installing, because only root can. Tests that need these packages cannot pass without them:" >&2; \
		echo "  sudo apt-get install --no-install-recommends$$missing" >&2; \
	else \
		echo "installing what the tests need:$$missing" >&2; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi
