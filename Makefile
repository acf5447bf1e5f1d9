# The front door of the project. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help

GO ?= go
TOOL := $(GO) tool -modfile=tools/go.mod

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

build/protovalidate:
	@mkdir -p build
	@cd tools && $(GO) mod download github.com/bufbuild/protovalidate
	@ln -sfn "$$(cd tools && $(GO) list -m -f '{{.Dir}}' github.com/bufbuild/protovalidate)/proto/protovalidate" $@

.PHONY: generate
generate: build/protovalidate ## Generate the Go code of the API
	@$(TOOL) buf lint
	@$(TOOL) buf generate
