# Commands for people and CI. `make help` lists them.

PREFIX ?= /usr/local
# More arguments for `make dev`, `make bench` and `make fuzz`: make dev ARGS="--tcp"
ARGS ?=
# How long `make fuzz` runs each target, and `make models` each model.
SECONDS ?=

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BINARY := $(TARGET_DIR)/release/credential-vault
SHARE = $(DESTDIR)$(PREFIX)/share
COMPLETIONS := bash-completion/completions fish/vendor_completions.d zsh/site-functions
# CI builds exactly what Cargo.lock says; a developer may change a dependency.
LOCKED := $(if $(CI),--locked)

.PHONY: help dev docs-files test test-api test-systemd test-windows torture lint bench fuzz models soak release install clean test-packages static dist deb wheel

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: ## build and run the seeded dev service, and print curl lines that work
	@scripts/need cargo cc
	cargo run $(LOCKED) --bin credential-vault -- dev $(ARGS)

test: ## run every test, including those with a real gnome-keyring and OpenBao
	@scripts/need cargo cc
	scripts/install-test-deps
	cargo test $(LOCKED)

test-api: ## hold the interface against docs/openapi.yaml with schemathesis (PyPI)
	@scripts/need cargo cc python3
	cargo build $(LOCKED) --bin credential-vault
	scripts/test-api $(ARGS)

test-systemd: ## run the units of scripts/systemd under a real systemd, in a container (root, Debian)
	@scripts/need cargo cc python3
	cargo build $(LOCKED) --bin credential-vault
	scripts/test-systemd $(ARGS)

torture: ## kill the service 1,000 times under load, and check that nothing is lost (ROUNDS=100 for fewer)
	@scripts/need cargo cc
	scripts/install-test-deps
	IF_TORTURE_ROUNDS=$(or $(ROUNDS),1000) cargo test $(LOCKED) --test torture

test-windows: ## run the library's tests on Windows, played by Wine
	@scripts/need cargo cc
	scripts/test-windows

test-packages: static deb wheel ## run the static binary in an empty folder, the .deb under systemd, the wheel with Python
	scripts/test-static
	scripts/test-wheel
	scripts/test-deb

lint: ## check format, lints (also for macOS and Windows), documentation, dependencies, scripts
	@scripts/need cargo cc rustfmt clippy
	cargo fmt --check
	cargo fmt --check --manifest-path tests/fuzz/Cargo.toml
	cargo fmt --check --manifest-path tests/models/Cargo.toml
	cargo clippy $(LOCKED) --all-targets -- -D warnings
	for features in client server hashicorp keyring redact sealed passphrase; do \
		cargo clippy $(LOCKED) --lib --no-default-features --features $$features -- -D warnings || exit; \
	done
	RUSTDOCFLAGS="-D warnings" cargo doc $(LOCKED) --no-deps
	scripts/lint-platforms
	scripts/lint-dependencies
	scripts/lint-scripts

bench: ## measure against nginx, bao proxy and others on this machine (ARGS=--quick for a first look)
	@scripts/need cargo cc python3 nginx
	scripts/install-test-deps
	scripts/bench/run $(ARGS)

fuzz: ## look for input that breaks a promise, for 60 s in each target (SECONDS=600)
	@scripts/need cargo cc
	scripts/fuzz $(or $(SECONDS),60) $(ARGS)

models: ## try many orders of steps where threads meet, for 16 s in each model (SECONDS=60)
	@scripts/need cargo
	cargo run --quiet --release --manifest-path tests/models/Cargo.toml \
		--target-dir $(TARGET_DIR)/models -- $(SECONDS)

soak: ## load the service and check what it promises (SECONDS=60 BACKEND=env, keyring or hashicorp)
	@scripts/need cargo cc
	scripts/install-test-deps
	cargo build $(LOCKED) --release --bin credential-vault
	SOAK_SECONDS=$(or $(SECONDS),60) SOAK_BACKEND=$(BACKEND) SOAK_PROGRAM="$(abspath $(BINARY))" \
		$(if $(filter keyring,$(BACKEND)),scripts/with-keyring) \
		cargo test $(LOCKED) --test soak -- --nocapture

release: ## build the optimised binary
	@scripts/need cargo cc
	cargo build $(LOCKED) --release --bin credential-vault

static: ## build a static binary for any Linux (Debian, musl)
	scripts/static

dist: ## pack a release: static binary, documentation, licences, SBOM, sums; reproducible
	@scripts/need cargo cc python3
	scripts/dist

deb: ## make a Debian package of the static binary
	@scripts/need cargo cc python3
	scripts/deb

wheel: ## make a Python wheel of the static binary
	@scripts/need python3
	scripts/wheel

# `sudo make install` often finds no cargo. It then installs the result of `make release`.
install: ## install the binary, manual pages and completions to $(PREFIX); DESTDIR is honoured
	@if command -v cargo >/dev/null || [ ! -f "$(BINARY)" ]; then $(MAKE) --no-print-directory release; fi
	scripts/docs-files "$(BINARY)" "$(TARGET_DIR)"
	install -d "$(DESTDIR)$(PREFIX)/bin" $(foreach folder,man/man1 man/man5 $(COMPLETIONS),"$(SHARE)/$(folder)")
	install -m 0755 "$(BINARY)" "$(DESTDIR)$(PREFIX)/bin/credential-vault"
	install -m 0644 "$(TARGET_DIR)"/man/man1/*.1 "$(SHARE)/man/man1"
	install -m 0644 "$(TARGET_DIR)"/man/man5/*.5 "$(SHARE)/man/man5"
	install -m 0644 "$(TARGET_DIR)/completions/credential-vault" "$(SHARE)/bash-completion/completions"
	install -m 0644 "$(TARGET_DIR)/completions/credential-vault.fish" "$(SHARE)/fish/vendor_completions.d"
	install -m 0644 "$(TARGET_DIR)/completions/_credential-vault" "$(SHARE)/zsh/site-functions"

docs-files: release ## make the manual pages and completions: target/man, target/completions
	scripts/docs-files "$(BINARY)" "$(TARGET_DIR)"

clean: ## remove the build output
	@scripts/need cargo
	cargo clean
