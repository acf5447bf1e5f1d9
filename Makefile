# The front door of the project. `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

GO ?= go
TOOL := $(GO) tool -modfile=tools/go.mod
LINT_TOOL := $(GO) tool -modfile=tools/lint/go.mod
VERSION ?= $(shell git describe --tags --always --dirty=-changed 2>/dev/null || echo unreleased)
LDFLAGS := -s -w -X github.com/blixard/blixard/internal/version.text=$(VERSION)

# All that is fetched or built stays below the checkout, unless a cache outside is named.
export BLIXARD_CACHE_DIR ?= $(CURDIR)/build/cache

# Boots of each kernel in soak-boots, seed of sim, time of soak, site and chaos, losses of hosts in rounds, least coverage of a package in percent, packages that test looks at, flags for go test.
SOAK_BOOTS ?= 300
SEED ?= 1
SOAK_TIME ?= 10m
SITE_TIME ?= 30m
SITE_VMS ?= 60
ROUNDS ?= 200
CHAOS_TIME ?= 10m
COVER_MIN ?= 80
PKG ?= ./...
TESTFLAGS ?=

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

# What building, the kernel and the tests need of Debian 12, beside Go.
PACKAGES := qemu-system-x86 e2fsprogs dpkg make gcc libc6-dev flex bison bc libelf-dev libssl-dev cpio rsync xz-utils kmod \
	mmdebstrap iproute2 nftables openssl curl docker-registry busybox-static xfsprogs btrfs-progs erofs-utils qemu-utils openssh-client dropbear-bin iputils-ping

.PHONY: packages
packages: ## Install the Debian packages that building and testing need; as root or with sudo
	@sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null

.PHONY: build
build: ## Build bin/blixard and bin/blixard-guest, static
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/blixard ./cmd/blixard-guest

.PHONY: bundle
bundle: build ## Build the guest bundle beside the program, bin/bundle
	@bin/blixard bundle build --output bin/bundle

.PHONY: kernel
kernel: build ## Build our own guest kernel into the cache, and the bundle with it
	@bin/blixard bundle build --output bin/bundle --own-kernel build

.PHONY: test
test: bundle ## Test everything, with real VMs
	@$(GO) test -timeout 40m -cover $(TESTFLAGS) $(PKG)
	@$(GO) test -tags planted -run Planted $(TESTFLAGS) ./sim

.PHONY: sim
sim: ## Replay the simulated cluster of SEED, with its whole trace
	@$(GO) test ./sim -count 1 -run '^TestSeed$$' -v -seed $(SEED)

.PHONY: soak
soak: ## Simulate clusters of new seeds for SOAK_TIME on all processors; failing seeds are kept in sim/testdata/seeds.txt
	@mkdir -p build && $(GO) test -c -o build/sim.test ./sim
	@first=$$(($$(date +%s) * 1000)); cd sim; ok=0; pids=""; for n in $$(seq $$(nproc)); do \
	../build/sim.test -test.run '^TestSoak$$' -test.timeout 0 -test.v -soak $(SOAK_TIME) -first $$((first + n * 100000000000)) >../build/soak.$$n.txt 2>&1 & pids="$$pids $$!"; \
	done; for pid in $$pids; do wait $$pid || ok=1; done; cd ..; grep -h ' seeds; \|replay:' build/soak.*.txt; exit $$ok

.PHONY: chaos
chaos: bundle ## Kill, pause, cut off and slow down three daemons on hosts of their own for CHAOS_TIME, and check what their clients saw
	@BLIXARD_TEST_CHAOS=$(CHAOS_TIME) $(GO) test ./daemon -count 1 -v -timeout 0 -run '^TestClusterUnderChaosIsLinearizable$$'

.PHONY: site
site: bundle ## Lose hosts at random for SITE_TIME while SITE_VMS VMs, a group and tasks run on them
	@BLIXARD_TEST_SITE=$(SITE_TIME) BLIXARD_TEST_SITE_VMS=$(SITE_VMS) $(GO) test ./daemon -count 1 -v -timeout 0 -run '^TestSiteSurvives$$'

.PHONY: rounds
rounds: bundle ## Lose a host ROUNDS times while exclusive VMs send their epochs to a witness over the network
	@BLIXARD_TEST_EPOCH_ROUNDS=$(ROUNDS) $(GO) test ./daemon -count 1 -v -timeout 0 -run '^TestGuestsTellOneEpoch$$'

.PHONY: race
race: bundle ## Test everything under the race detector
	@CGO_ENABLED=1 $(GO) test -race -timeout 40m $(TESTFLAGS) $(PKG)

.PHONY: cover
cover: bundle build/coverage ## Print the coverage of each package by all tests; fail below COVER_MIN percent; build/cover.html
	@rm -rf build/cover && mkdir -p build/cover/run build/cover/guest
	@CGO_ENABLED=0 $(GO) build -cover -coverpkg=./... -tags failpoints -o build/cover/ ./cmd/blixard
	@CGO_ENABLED=0 $(GO) build -cover -covermode atomic -coverpkg=./... -tags guestcover -o build/cover/ ./cmd/blixard-guest
	@for cache in $(CURDIR)/build/cover/cache "$$BLIXARD_CACHE_DIR"; do \
	GOCOVERDIR=$(CURDIR)/build/cover/run BLIXARD_CACHE_DIR=$$cache build/cover/blixard bundle build --output build/cover/bundle \
	--guest build/cover/blixard-guest --kernel mine=bin/bundle/debian-kernel >build/cover/bundle.log 2>&1 || { cat build/cover/bundle.log; exit 1; }; done
	@BLIXARD_TEST_BINARY=$(CURDIR)/build/cover/blixard BLIXARD_TEST_COVERDIR=$(CURDIR)/build/cover/run \
	BLIXARD_TEST_BUNDLE=$(CURDIR)/build/cover/bundle BLIXARD_TEST_GUEST_COVERDIR=$(CURDIR)/build/cover/guest \
	$(GO) test -count 1 -timeout 40m -coverpkg=./... -coverprofile=build/cover/tests.out $(TESTFLAGS) $(PKG) | sed -E 's/[[:space:]]+coverage: .*//'
	@for d in run guest; do $(GO) tool covdata textfmt -i=build/cover/$$d -o build/cover/$$d.out; done
	@build/coverage -module github.com/blixard/blixard -min $(COVER_MIN) -o build/cover.out build/cover/tests.out build/cover/run.out build/cover/guest.out && ok=0 || ok=1; \
	$(GO) tool cover -html=build/cover.out -o build/cover.html; exit $$ok

build/coverage: $(wildcard tools/cover/*)
	@mkdir -p build
	@cd tools && $(GO) build -o $(CURDIR)/build/coverage ./cover

.PHONY: lint
lint: build/lint ## Check form and the rules of tools/lint
	@bad=$$(git ls-files --cached --others --exclude-standard '*.go' | grep -v '\.pb\.go$$' | xargs -r $(LINT_TOOL) gofumpt -l); \
	if [ -n "$$bad" ]; then echo "not formatted with gofumpt:"; echo "$$bad"; exit 1; fi
	@$(GO) vet ./...
	@$(GO) vet -vettool=$(CURDIR)/build/lint ./...

build/lint: $(wildcard tools/lint/*)
	@mkdir -p build
	@cd tools/lint && $(GO) build -o $(CURDIR)/build/lint .

build/protovalidate:
	@mkdir -p build
	@cd tools && $(GO) mod download github.com/bufbuild/protovalidate
	@ln -sfn "$$(cd tools && $(GO) list -m -f '{{.Dir}}' github.com/bufbuild/protovalidate)/proto/protovalidate" $@

.PHONY: generate
generate: build/protovalidate ## Generate the Go code of the API, docs/CONFIGURATION.md, docs/CLI.md and docs/manifest.schema.json
	@$(TOOL) buf lint
	@$(TOOL) buf generate
	@mkdir -p docs
	@$(GO) run ./daemon/config/page > build/page.md && mv build/page.md docs/CONFIGURATION.md
	@$(GO) run ./cli/page > build/page.md && mv build/page.md docs/CLI.md
	@rm -rf build/schema && $(TOOL) buf generate --template buf.gen.schema.yaml
	@$(GO) run ./internal/manifest/schema build/schema > build/schema.json && mv build/schema.json docs/manifest.schema.json

.PHONY: check-dirty
check-dirty: generate ## Fail when generated files or go.mod are not current
	@$(GO) mod tidy -diff
	@cd tools/lint && $(GO) mod tidy -diff
	@if [ -n "$$(git status --porcelain)" ]; then git status --short; git --no-pager diff; \
	echo "generated files are not current: run make generate and commit"; exit 1; fi

.PHONY: bench
bench: bundle ## Measure: the figures of docs/PERFORMANCE.md
	@$(GO) test -p 1 -run '^$$' -bench . -benchmem -timeout 60m $(TESTFLAGS) $(PKG)

.PHONY: bench-changes
bench-changes: bundle ## Measure changes a second beside an etcd on the same disk
	@mkdir -p build
	@cd bench && $(GO) build -o $(CURDIR)/build/bench .
	@build/bench changes

.PHONY: bench-cluster
bench-cluster: bundle ## Measure changes and reads a second of three nodes beside three etcds on the same disk
	@mkdir -p build
	@cd bench && $(GO) build -o $(CURDIR)/build/bench .
	@build/bench cluster
	@build/bench cluster -to leader

.PHONY: soak-boots
soak-boots: bundle ## Boot each kernel SOAK_BOOTS times, and count
	@BLIXARD_TEST_BOOTS=$(SOAK_BOOTS) $(GO) test -tags soak -run '^TestSoak' -count 1 -timeout 60m -v $(TESTFLAGS) ./daemon

.PHONY: demo
demo: ## Show a real microVM from boot to deletion; installs what it needs
	@./demo/demo.sh

.PHONY: clean
clean: ## Remove what was built; the cache stays
	@rm -rf bin build/lint build/cover build/coverage build/cover.* build/demo build/protovalidate build/schema
