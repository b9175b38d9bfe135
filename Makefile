# `make test` runs all checks and tests. It installs the system packages that the tests need, if
# they are missing. The tests start temporary database servers, and do not use existing ones.

# These variables would replace the flags of .cargo/config.toml, and the simulator does not compile
# without those.
unexport RUSTFLAGS
unexport CARGO_ENCODED_RUSTFLAGS

.PHONY: test tools demo ha bench alerts fuzz api-fuzz producers databases conformance

# The oldest and the newest version that are supported. `make test` runs one trial on each. They are npm packages.
OTHER_POSTGRESQL = 13.23.0-beta.16 18.4.0-beta.17

test: tools target/nginx target/pgbouncer
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo doc --locked --workspace --no-deps
	cargo build --locked --workspace
	SUREHOOK_PROGRAM='$(CURDIR)/target/debug/surehook' cargo test --locked --workspace
	SUREHOOK_PROGRAM='$(CURDIR)/target/debug/surehook' POSTGRESQL='$(OTHER_POSTGRESQL)' PGBOUNCER_OF= PGPOOL_OF= \
	    tests/databases/run.sh '$(CURDIR)/target/debug/examples/databases'

demo:
	cargo run --locked --release -- demo

# Kills the leader of three PostgreSQL servers ten times, under load. It takes some minutes, so it
# is not part of `make test`. It does not use the system services of the packages, so these need not
# run.
ha: tools
	@for program in patroni etcd; do command -v $$program >/dev/null || { \
	    echo "$$program is missing: install it (Debian: apt-get install patroni etcd-server)" >&2; exit 1; }; done
	cargo build --locked --package surehook
	SUREHOOK_PROGRAM='$(CURDIR)/target/debug/surehook' cargo run --locked --package tests --example ha

# Measures the service, and as a baseline the database alone. It takes about 35 minutes and needs an
# idle machine.
# BENCH="intake drain" runs only these groups. BENCH=growth fills about 15 GB of disk.
# BENCH=endurance takes 45 minutes: four runs of ten minutes at full rate.
# BENCH="endurance --minutes 2" takes less.
# BENCH="compare --with PATH" loads this build and the program at PATH in turn. Only this compares two builds.
bench: tools
	cargo build --locked --release --package surehook
	SUREHOOK_PROGRAM='$(CURDIR)/target/release/surehook' cargo bench --locked --package tests --bench service -- $(BENCH)

# Compares the responses of the running program with its description at /openapi.json.
# Needs Python 3, and the network in the first run.
api-fuzz: target/api-fuzz/installed
	cargo build --locked --package surehook
	target/api-fuzz/venv/bin/python tests/api-fuzz/run.py target/debug/surehook target/api-fuzz/run

target/api-fuzz/installed: tests/api-fuzz/requirements.txt
	python3 -m venv --clear target/api-fuzz/venv
	target/api-fuzz/venv/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# Tests with the libraries of producers, and with real servers as producers, on SQLite and on PostgreSQL.
# Needs Node 20 and npm, and the network in the first run. The servers are Debian's Alertmanager and
# Docker registry. Without apt-get, their tests are skipped.
# PRODUCERS="stripe.test.js" runs only these files.
producers: tools target/producers/installed
	cargo build --locked --package surehook
	rm -rf target/producers/tests
	cp -R tests/producers target/producers/tests
	SUREHOOK_PROGRAM='$(CURDIR)/target/debug/surehook' node target/producers/tests/run.js $(PRODUCERS)

target/producers/installed: tests/producers/package.json tests/producers/package-lock.json tests/producers/install.sh
	tests/producers/install.sh
	touch $@

# A trial on each version of PostgreSQL and behind each pooler that can be had: the versions 13 to 18 (npm packages),
# and PgBouncer and Pgpool of several releases of Debian. Needs npm and apt-get, and the network in the first run. It
# takes some minutes. POSTGRESQL="17.10.0-beta.17", PGBOUNCER_OF="sid" and PGPOOL_OF="sid" run only these, and an empty
# value none.
databases: tools
	cargo build --locked --workspace --example databases --bin surehook
	SUREHOOK_PROGRAM='$(CURDIR)/target/debug/surehook' tests/databases/run.sh '$(CURDIR)/target/debug/examples/databases'

# Whether the promises hold on a database that is given: the contract of the store, the plans of its statements, and a
# trial with kills. The role must be able to create schemas; those of the tests are dropped at the end. If DATABASE leads
# to a pooler, DIRECT is a URL of the same database without it. It takes some minutes.
conformance:
	cargo build --locked --workspace --example conformance --bin surehook
	SUREHOOK_PROGRAM='$(CURDIR)/target/debug/surehook' CONFORMANCE_DATABASE='$(DATABASE)' \
	    $(if $(DIRECT),CONFORMANCE_DIRECT='$(DIRECT)') '$(CURDIR)/target/debug/examples/conformance'

# Checks the alert rules with Prometheus' own tool. Needs Debian's archive in the first run, if
# promtool is not installed.
alerts: target/promtool
	target/promtool check rules deploy/alerts.yaml
	target/promtool test rules tests/alerts/test.yaml

# Only the tool is taken from the package: the package itself starts a server.
target/promtool:
	mkdir -p target
	@if command -v promtool >/dev/null; then ln -s "$$(command -v promtool)" $@; else \
	    folder=$$(mktemp -d) && cd "$$folder" && apt-get download prometheus && dpkg-deb -x prometheus_*.deb . && cd '$(CURDIR)' \
	        && mv "$$folder/usr/bin/promtool" $@ && rm -r "$$folder"; \
	fi

# Runs each target of fuzz/ for FUZZ_SECONDS. A failing input is stored in fuzz/artifacts/ and ends
# the run. New inputs are stored in fuzz/target/corpus/. The checked-in inputs are the seeds of a
# run, and do not change.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= event intake worker retry_after idempotency_key key_places configuration http
# No sanitizer: sanitizers find bugs in unsafe code, and this project has none. They halve the
# speed.
FUZZ_RUN = cargo +nightly fuzz run --fuzz-dir fuzz --sanitizer none

fuzz:
	@if ! rustup toolchain list | grep -q nightly; then \
	    echo "no nightly compiler found, which fuzzing needs: installing it"; rustup toolchain install nightly --profile minimal; \
	fi
	@if ! cargo fuzz --version >/dev/null 2>&1; then echo "cargo-fuzz is missing: installing it"; cargo install --locked cargo-fuzz; fi
	@set -e; for target in $(FUZZ_TARGETS); do \
	    echo "fuzzing $$target for $(FUZZ_SECONDS) seconds"; \
	    mkdir -p fuzz/target/corpus/$$target; \
	    dictionary=fuzz/dictionaries/$$target; \
	    $(FUZZ_RUN) $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
	        -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	        $$(if test -f $$dictionary; then echo -dict=$$dictionary; fi); \
	done

# Installs the system packages that the tests need: PostgreSQL's server programs, and libfaketime,
# which gives a process a wrong clock. It looks for the server programs where the tests look: on the
# path, in the folder that pg_config prints, and in Debian's folder.
tools:
	@server() { \
	    command -v initdb || { command -v pg_config && test -x "$$(pg_config --bindir)/initdb"; } || ls /usr/lib/postgresql/*/bin/initdb; \
	}; \
	faketime() { ls /usr/lib*/faketime/libfaketime.so.1 || ls /usr/lib/*/faketime/libfaketime.so.1; }; \
	found() { server >/dev/null 2>&1 && faketime >/dev/null 2>&1; }; \
	if found; then exit 0; fi; \
	if test "$$(id -u)" = 0; then sudo=; else sudo=sudo; fi; \
	echo "PostgreSQL's server programs or libfaketime are missing: installing them"; \
	if command -v apt-get >/dev/null; then \
	    $$sudo apt-get update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql libfaketime; \
	elif command -v dnf >/dev/null; then $$sudo dnf install --assumeyes postgresql-server libfaketime; \
	elif command -v apk >/dev/null; then $$sudo apk add postgresql libfaketime; \
	else echo "no apt-get, dnf or apk found: install PostgreSQL's server, with initdb on the path, and libfaketime" >&2; exit 1; fi && \
	if ! found; then echo "initdb or libfaketime not found after the installation" >&2; exit 1; fi

# nginx, for the tests of deploy/nginx.conf. Of Debian's package only the program is taken: the package itself starts a
# server at port 80. The libraries that the program needs are on every machine with PostgreSQL.
target/nginx:
	@mkdir -p target
	@PATH="$$PATH:/usr/sbin"; \
	if test "$$(id -u)" = 0; then sudo=; else sudo=sudo; fi; \
	if command -v nginx >/dev/null; then :; \
	elif command -v apt-get >/dev/null; then \
	    echo "nginx is missing: unpacking Debian's package"; \
	    folder=$$(mktemp -d) && cd "$$folder" && $$sudo apt-get update && apt-get download nginx && dpkg-deb -x nginx_*.deb . \
	        && mv usr/sbin/nginx '$(CURDIR)/$@' && rm -r "$$folder" && '$(CURDIR)/$@' -v; \
	    exit; \
	elif command -v dnf >/dev/null; then $$sudo dnf install --assumeyes nginx; \
	elif command -v apk >/dev/null; then $$sudo apk add nginx; \
	else echo "no apt-get, dnf or apk found: install nginx" >&2; exit 1; fi && \
	ln -sf "$$(command -v nginx)" $@

# PgBouncer for the tests of poolers, the same way. Its libraries are packages of their own, so they are
# unpacked as well, and a script finds them.
target/pgbouncer:
	@mkdir -p target
	@PATH="$$PATH:/usr/sbin"; \
	if test "$$(id -u)" = 0; then sudo=; else sudo=sudo; fi; \
	if command -v pgbouncer >/dev/null; then :; \
	elif command -v apt-get >/dev/null; then \
	    echo "PgBouncer is missing: unpacking Debian's package"; \
	    rm -rf target/pgbouncer-package && mkdir target/pgbouncer-package && cd target/pgbouncer-package \
	        && $$sudo apt-get update && apt-get download pgbouncer $$(apt-cache depends pgbouncer | sed -n 's/.*Depends: \(lib\(c-ares\|event\).*\)/\1/p') \
	        && for package in *.deb; do dpkg-deb -x "$$package" .; done && mkdir libraries && cp usr/lib/*/lib*.so.* libraries/ \
	        && printf '#!/bin/sh\nhere=$$(dirname "$$(readlink -f "$$0")")/pgbouncer-package\nLD_LIBRARY_PATH="$$here/libraries" exec "$$here/usr/sbin/pgbouncer" "$$@"\n' > '$(CURDIR)/$@' \
	        && chmod 755 '$(CURDIR)/$@' && '$(CURDIR)/$@' --version; \
	    exit; \
	elif command -v dnf >/dev/null; then $$sudo dnf install --assumeyes pgbouncer; \
	elif command -v apk >/dev/null; then $$sudo apk add pgbouncer; \
	else echo "no apt-get, dnf or apk found: install PgBouncer" >&2; exit 1; fi && \
	ln -sf "$$(command -v pgbouncer)" $@
