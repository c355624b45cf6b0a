# The verbs of this repository. CI calls the same ones (.ci/run).

.DEFAULT_GOAL := help
.PHONY: help check test mutants mutants-proto api demo bench fuzz fuzz-run loom memcheck model soak static tsan image install clean

PREFIX ?= /usr/local
# Cargo's profile for `make static` and `make image`.
PROFILE ?= release
# Where cargo-auditable is installed, the program says by itself what it was built from (cargo audit bin, trivy, syft).
AUDITABLE := $(shell command -v cargo-auditable >/dev/null && echo auditable)
# Which changes `make mutants` makes, by the beginnings of their ids, for instance: make mutants IDS="S-04 S-2"
IDS ?=
# Which files of src/proto `make mutants-proto` changes, for instance: make mutants-proto FILES="cookie replay"
FILES ?=
# What `make bench` passes on, for instance: make bench BENCH_ARGS=--quick
BENCH_ARGS ?=

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

check: ## Formatting, lints, the no_std build, docs, licences
	scripts/check.sh

test: ## Every test; as root also those in network namespaces (installs the tools they need)
	scripts/install-tools.sh
	scripts/test.sh

mutants: ## Breaks each promise on purpose, in a copy, and looks whether its tests notice (half an hour; IDS="S-04 S-2": those)
	scripts/mutants.py $(IDS)

mutants-proto: ## Changes src/proto in every way that cargo-mutants knows, in a copy (an hour and more; FILES="cookie replay")
	scripts/install-tools.sh --mutants
	scripts/mutants-proto.sh $(FILES)

api: ## Writes the listing of the public API (docs/api) anew, after a change of it that is meant
	ADIT_WRITE_API=1 cargo test --quiet --test api
	@git status --short docs/api

demo: ## A tunnel between two namespaces, and a sidecar (root); without root, a page fetched through a tunnel of two processes
	@if [ "$$(id -u)" = 0 ]; then scripts/install-tools.sh --demo; fi
	cargo build --release --bin adit
	scripts/demo.sh target/release/adit

bench: ## Side by side with other implementations, end to end (root, an hour; BENCH_ARGS=--quick: minutes)
	@if [ "$$(id -u)" != 0 ]; then echo "bench: needs root, for network namespaces and TUN devices" >&2; exit 2; fi
	scripts/install-tools.sh
	scripts/fetch-wireguard-go.sh
	cargo build --release --bin adit --example handshake_load --example stranger_flood
	benches/e2e/run.py $(BENCH_ARGS)

fuzz: ## Builds the fuzz targets, where cargo-fuzz is installed
	scripts/fuzz.sh --build

fuzz-run: ## Searches with them, FUZZ_SECONDS=60 each (FUZZ_TARGETS="uapi offload": those); adds to fuzz/runs.tsv
	scripts/fuzz.sh

model: ## Engines against a model, over a network that is an adversary's: 100,000 runs (MODEL_RUNS)
	ADIT_MODEL_RUNS=$(or $(MODEL_RUNS),100000) cargo test --release --test model

loom: ## What threads share, in every order of events with at most LOOM_PREEMPTIONS=3 interruptions (make test: 2)
	LOOM_MAX_PREEMPTIONS=$(or $(LOOM_PREEMPTIONS),3) cargo test --test loom

tsan: ## ThreadSanitizer over the pipeline in memory (TSAN_TARGETS="--test device": that)
	scripts/tsan.sh

memcheck: ## valgrind's memcheck over the pipeline, its edges and the system calls (MEMCHECK_TARGETS="--test device": that)
	scripts/memcheck.sh

soak: ## A hub, its peers and strangers for 20 minutes, time running sixty times as fast (SOAK_SECONDS, SOAK_PEERS)
	ADIT_SOAK_SECONDS=$(or $(SOAK_SECONDS),1200) ADIT_SOAK_PEERS=$(or $(SOAK_PEERS),24) cargo test --test soak -- --nocapture

static: ## One static program that needs no file beside itself: target/static/adit
	scripts/static.sh $(PROFILE)

image: static ## The container image adit:VERSION, from nothing but the static program (buildah, podman or docker)
	scripts/image.sh

install: ## The program, man pages, completions and units, under PREFIX (/usr/local)
	cargo $(AUDITABLE) build --release --bin adit
	install -D -m 0755 target/release/adit $(DESTDIR)$(PREFIX)/bin/adit
	install -D -m 0644 docs/man/adit.8 $(DESTDIR)$(PREFIX)/share/man/man8/adit.8
	install -D -m 0644 docs/man/adit-proxy.8 $(DESTDIR)$(PREFIX)/share/man/man8/adit-proxy.8
	install -D -m 0644 docs/man/adit.conf.5 $(DESTDIR)$(PREFIX)/share/man/man5/adit.conf.5
	install -D -m 0644 deploy/completions/adit.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/adit
	install -D -m 0644 deploy/completions/_adit $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_adit
	install -D -m 0644 deploy/completions/adit.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/adit.fish
	install -D -m 0644 deploy/systemd/adit@.service $(DESTDIR)$(PREFIX)/lib/systemd/system/adit@.service

clean: ## Removes what was built
	cargo clean
