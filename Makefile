# What people and CI run. `make help` lists it.

PREFIX ?= /usr/local
# More arguments for `make dev` and `make bench`: make dev ARGS="--tcp"
ARGS ?=

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BINARY := $(TARGET_DIR)/release/credential-vault
# CI builds what Cargo.lock says; a developer who changes a dependency gets a new lock.
LOCKED := $(if $(CI),--locked)

.PHONY: help dev test lint bench release install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: ## build and run the seeded dev service, and print curl lines that work
	@scripts/need cargo cc
	cargo run $(LOCKED) --bin credential-vault -- dev $(ARGS)

test: ## run every test, those with a real gnome-keyring among them
	@scripts/need cargo cc
	scripts/install-test-deps
	cargo test $(LOCKED)

lint: ## check format, lints, documentation, dependencies and scripts
	@scripts/need cargo cc rustfmt clippy
	cargo fmt --check
	cargo clippy $(LOCKED) --all-targets -- -D warnings
	for features in client server hashicorp keyring redact; do \
		cargo clippy $(LOCKED) --lib --no-default-features --features $$features -- -D warnings || exit; \
	done
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --no-deps
	scripts/lint-dependencies
	scripts/lint-scripts

bench: ## measure against nginx on this machine (ARGS=--quick for a first look)
	@scripts/need cargo cc python3 nginx
	scripts/bench/run $(ARGS)

release: ## build the binary as it is released
	@scripts/need cargo cc
	cargo build $(LOCKED) --release --bin credential-vault

# `sudo make install` often finds no cargo: what `make release` has built is then installed.
install: ## install the binary to $(PREFIX)/bin; DESTDIR is honoured
	@if command -v cargo >/dev/null || [ ! -f "$(BINARY)" ]; then $(MAKE) --no-print-directory release; fi
	install -d "$(DESTDIR)$(PREFIX)/bin"
	install -m 0755 "$(BINARY)" "$(DESTDIR)$(PREFIX)/bin/credential-vault"

clean: ## remove what was built
	@scripts/need cargo
	cargo clean
