# `make test` is everything that has to be green. PostgreSQL's server programs are installed if there are none; the
# tests start throwaway servers of their own, and touch no server that is there.

# These replace the flags of .cargo/config.toml, without which the simulator does not compile.
unexport RUSTFLAGS
unexport CARGO_ENCODED_RUSTFLAGS

.PHONY: test postgres demo

test: postgres
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo build --locked --workspace
	SUREHOOK_PROGRAM='$(CURDIR)/target/debug/surehook' cargo test --locked --workspace

demo:
	cargo run --locked --release -- demo

# Looked for where the tests look: on the path, where pg_config says, where Debian keeps them.
postgres:
	@found() { \
	    command -v initdb || { command -v pg_config && test -x "$$(pg_config --bindir)/initdb"; } || ls /usr/lib/postgresql/*/bin/initdb; \
	}; \
	if found >/dev/null 2>&1; then exit 0; fi; \
	if test "$$(id -u)" = 0; then sudo=; else sudo=sudo; fi; \
	echo "PostgreSQL's server programs are not here: installing them"; \
	if command -v apt-get >/dev/null; then \
	    $$sudo apt-get update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql; \
	elif command -v dnf >/dev/null; then $$sudo dnf install --assumeyes postgresql-server; \
	elif command -v apk >/dev/null; then $$sudo apk add postgresql; \
	elif command -v brew >/dev/null; then brew install postgresql@17 && brew link --force postgresql@17; \
	else echo "no apt-get, dnf, apk or brew: install PostgreSQL's server, with initdb on the path" >&2; exit 1; fi && \
	if ! found >/dev/null 2>&1; then echo "installed, but there is no initdb: put its folder on the path" >&2; exit 1; fi
