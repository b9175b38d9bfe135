# `make test` is everything that has to be green. What the tests need of the system is installed if it is not there; the
# tests start throwaway servers of their own, and touch no server that is there.

# These replace the flags of .cargo/config.toml, without which the simulator does not compile.
unexport RUSTFLAGS
unexport CARGO_ENCODED_RUSTFLAGS

.PHONY: test tools demo ha bench fuzz api-fuzz

test: tools
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo doc --locked --workspace --no-deps
	cargo build --locked --workspace
	SUREHOOK_PROGRAM='$(CURDIR)/target/debug/surehook' cargo test --locked --workspace

demo:
	cargo run --locked --release -- demo

# Ten kills of the leader of three PostgreSQL servers, under load: some minutes, so it is not part of `make test`. The
# packages' own services are not used, and need not run.
ha: tools
	@for program in patroni etcd; do command -v $$program >/dev/null || { \
	    echo "there is no $$program: install it (Debian: apt-get install patroni etcd-server)" >&2; exit 1; }; done
	cargo build --locked --package surehook
	SUREHOOK_PROGRAM='$(CURDIR)/target/debug/surehook' cargo run --locked --package tests --example ha

# How fast it all is, beside what the database does alone: some 35 minutes, on a machine that does nothing else.
# BENCH="intake drain" measures those groups only; BENCH=growth fills some 15 GB of disk. BENCH=endurance takes 45 minutes:
# four runs of ten minutes at full rate; BENCH="endurance --minutes 2" takes less.
bench: tools
	cargo build --locked --release --package surehook
	SUREHOOK_PROGRAM='$(CURDIR)/target/release/surehook' cargo bench --locked --package tests --bench service -- $(BENCH)

# What the running program answers, against what it says of itself at /openapi.json. Needs Python 3 and, the first
# time, the network.
api-fuzz: target/api-fuzz/installed
	cargo build --locked --package surehook
	target/api-fuzz/venv/bin/python tests/api-fuzz/run.py target/debug/surehook target/api-fuzz/run

target/api-fuzz/installed: tests/api-fuzz/requirements.txt
	python3 -m venv --clear target/api-fuzz/venv
	target/api-fuzz/venv/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# Each target of fuzz/ for so many seconds. What fails is kept in fuzz/artifacts/ and ends the run. The inputs that a run
# learns stay in fuzz/target/corpus/; the checked-in ones are its seeds, and are left as they are.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= event intake worker retry_after idempotency_key configuration http
# No sanitizer: they look for mistakes in unsafe code, of which this project has none, at half the speed.
FUZZ_RUN = cargo +nightly fuzz run --fuzz-dir fuzz --sanitizer none

fuzz:
	@if ! rustup toolchain list | grep -q nightly; then \
	    echo "fuzzing needs a nightly compiler: installing it"; rustup toolchain install nightly --profile minimal; \
	fi
	@if ! cargo fuzz --version >/dev/null 2>&1; then echo "cargo-fuzz is not here: installing it"; cargo install --locked cargo-fuzz; fi
	@set -e; for target in $(FUZZ_TARGETS); do \
	    echo "fuzzing $$target for $(FUZZ_SECONDS) seconds"; \
	    mkdir -p fuzz/target/corpus/$$target; \
	    dictionary=fuzz/dictionaries/$$target; \
	    $(FUZZ_RUN) $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
	        -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	        $$(if test -f $$dictionary; then echo -dict=$$dictionary; fi); \
	done

# What the tests need of the system: PostgreSQL's server programs, looked for where the tests look (on the path, where
# pg_config says, where Debian keeps them), and libfaketime, which gives a process a wrong clock.
tools:
	@server() { \
	    command -v initdb || { command -v pg_config && test -x "$$(pg_config --bindir)/initdb"; } || ls /usr/lib/postgresql/*/bin/initdb; \
	}; \
	faketime() { ls /usr/lib*/faketime/libfaketime.so.1 || ls /usr/lib/*/faketime/libfaketime.so.1; }; \
	found() { server >/dev/null 2>&1 && faketime >/dev/null 2>&1; }; \
	if found; then exit 0; fi; \
	if test "$$(id -u)" = 0; then sudo=; else sudo=sudo; fi; \
	echo "PostgreSQL's server programs or libfaketime are not here: installing them"; \
	if command -v apt-get >/dev/null; then \
	    $$sudo apt-get update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql libfaketime; \
	elif command -v dnf >/dev/null; then $$sudo dnf install --assumeyes postgresql-server libfaketime; \
	elif command -v apk >/dev/null; then $$sudo apk add postgresql libfaketime; \
	else echo "no apt-get, dnf or apk: install PostgreSQL's server, with initdb on the path, and libfaketime" >&2; exit 1; fi && \
	if ! found; then echo "installed, but there is no initdb or no libfaketime where they are looked for" >&2; exit 1; fi
