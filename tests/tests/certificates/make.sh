#!/bin/sh
# Makes the certificates of the tests of TLS destinations and databases. `server` and `expired` are for 127.0.0.1 and
# localhost, `other-name` is for another name, and `authority` has issued all three. `other-authority` has issued nothing.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$work/$1.key"; }
authority() {
    key "$1"
    openssl req -x509 -key "$work/$1.key" -days 36500 -subj "/CN=$1" -out "$1.pem" -addext 'keyUsage=critical,keyCertSign'
}
server() {
    name=$1 alternatives=$2 ends=$3
    openssl req -new -key "$work/server.key" -subj "/CN=$name" -out "$work/$name.csr"
    printf 'basicConstraints=CA:FALSE\nsubjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$alternatives" > "$work/$name.ext"
    openssl ca -batch -notext -config "$work/ca.conf" -in "$work/$name.csr" -extfile "$work/$name.ext" \
        -cert authority.pem -keyfile "$work/authority.key" -startdate 20200101000000Z -enddate "$ends" -out "$name.pem"
}
printf '[ca]\ndefault_ca=c\n[c]\ndatabase=%s\nnew_certs_dir=%s\nrand_serial=yes\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n' \
    "$work/index" "$work" > "$work/ca.conf"
touch "$work/index"
authority authority
authority other-authority
key server
openssl pkcs8 -topk8 -nocrypt -in "$work/server.key" -out server.key.pem
server server DNS:localhost,IP:127.0.0.1 21200101000000Z
server expired DNS:localhost,IP:127.0.0.1 20260101000000Z
server other-name DNS:other.example 21200101000000Z
