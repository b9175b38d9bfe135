#!/bin/sh
# Installs what the tests of this folder need into target/producers: the npm packages of package-lock.json, and the servers
# of two Debian packages. These are unpacked and not installed, so their system services do not run.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target="$here/../../target/producers"
mkdir -p "$target"

is_new() { node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)'; }
if ! command -v npm >/dev/null || ! is_new; then
    echo "Node 20 or later and npm are needed: install them" >&2
    exit 1
fi
cp "$here/package.json" "$here/package-lock.json" "$target"
npm ci --prefix "$target" --ignore-scripts --no-audit --no-fund

root="$target/root"
rm -rf "$root"
mkdir -p "$root"
cd "$root"
if ! command -v apt-get >/dev/null; then
    echo "no apt-get: the tests with Alertmanager and with the Docker registry are skipped"
    exit 0
fi
download() { apt-get download prometheus-alertmanager docker-registry; }
if test "$(id -u)" = 0; then sudo=; else sudo=sudo; fi
if ! download && ! { $sudo apt-get update && download; }; then
    echo "apt-get does not find the packages: the tests with Alertmanager and with the Docker registry are skipped"
    exit 0
fi
for package in *.deb; do dpkg-deb --extract "$package" .; done
rm -- *.deb
# Alertmanager runs with this folder as its root, so its libraries must be here.
for library in $(ldd usr/bin/prometheus-alertmanager | grep -o '/[^ ]*'); do
    cp --parents --dereference "$library" .
done
