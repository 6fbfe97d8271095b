#!/usr/bin/env bash
# Builds the image of an archive of `cargo xtask dist` with buildah, and runs it with crun: as its user, without capabilities, with a
# read-only root, in namespaces of its own except that of the network. The base has the same packages of Debian 12 as the image of the
# registry that the Containerfile names. Needs root, and Debian's apt, buildah, crun and curl.
#
#   deploy/container/check.sh target/dist/weir-0.1.0-x86_64-unknown-linux-gnu.tar.gz
#   deploy/container/check.sh --build target/dist/weir-0.1.0-x86_64-unknown-linux-gnu.tar.gz
#   deploy/container/check.sh --compile
#
# With --build every step of Containerfile.build runs, in Debian 12 as debootstrap installs it, except the compilation: a stand-in for
# cargo looks for the compilers, and its result is the archive. With --compile it compiles too, with the Rust toolchain of this machine,
# which takes 40 minutes on two cores and 15 GB in the folder for temporary files.
set -euo pipefail
mode=copy
archive=
case ${1:-} in
    --compile) mode=compile ;;
    --build) mode=build; archive=$(realpath "$2") ;;
    '' | -*) echo "usage: $0 [--build] ARCHIVE | --compile" >&2; exit 2 ;;
    *) archive=$(realpath "$1") ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
runtime=
finish() {
    [[ -z $runtime ]] || kill "$runtime" 2>/dev/null || true
    [[ -z $runtime ]] || wait "$runtime" 2>/dev/null || true
    store umount --all >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT
fail() { echo "image: $*" >&2; cat "$work/log" 2>/dev/null >&2; exit 1; }
store() { buildah --storage-driver vfs --root "$work/store" --runroot "$work/run" "$@"; }

# The base: what the program links, and the description of the distribution.
base=$work/base/rootfs
mkdir -p "$base" "$work/packages" "$work/image/weir" "$work/bundle"
(cd "$work/packages" && apt-get -o APT::Sandbox::User=root download -q base-files libc6 libgcc-s1 >/dev/null)
for package in "$work/packages/"*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$base" --exclude=./usr/share/doc --exclude=./usr/share/locale
done
printf 'FROM scratch\nCOPY rootfs /\n' > "$work/base/Containerfile"
store build --isolation chroot -q -t weir-base "$work/base" >/dev/null
output=/dev/null
[[ $mode != compile ]] || output=/dev/stderr
image() { store build --isolation chroot -q --format docker --build-arg BASE=localhost/weir-base -t weir "$@" > "$output"; }
if [[ $mode = copy ]]; then
    tar -xzf "$archive" -C "$work/image/weir" --strip-components=1
    image -f "$here/Containerfile" "$work/image"
else
    # In place of the image of the registry with a Rust toolchain, which has these packages too.
    rust=$work/rust/rootfs
    mkdir -p "$work/rust"
    debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev bookworm "$rust" > "$work/log" || fail "debootstrap fails"
    printf 'FROM scratch\nCOPY rootfs /\n' > "$work/rust/Containerfile"
    if [[ $mode = compile ]]; then
        # Where the image of the registry has them, without the documents of the toolchain.
        toolchain=$(cd "$here" && rustc --print sysroot)
        name=$(basename "$toolchain")
        mkdir -p "$rust/usr/local/cargo/bin" "$rust/usr/local/rustup/toolchains/$name"
        tar -C "$toolchain/" --exclude=./share -c . | tar -x -C "$rust/usr/local/rustup/toolchains/$name"
        cp "$(command -v rustup)" "$rust/usr/local/cargo/bin/rustup"
        for proxy in cargo rustc rustdoc; do ln -s rustup "$rust/usr/local/cargo/bin/$proxy"; done
        # This machine may have certificates of its own.
        cp /etc/ssl/certs/ca-certificates.crt "$rust/etc/ssl/certs/ca-certificates.crt"
        cat >> "$work/rust/Containerfile" <<EOF
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup RUSTUP_TOOLCHAIN=$name PIP_CERT=/etc/ssl/certs/ca-certificates.crt
ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
EOF
    else
        cp "$archive" "$rust/archive.tar.gz"
        cat > "$rust/usr/local/bin/rustup" <<'EOF'
#!/bin/sh -e
[ "$*" = "target add wasm32-wasip2" ]
EOF
        cat > "$rust/usr/local/bin/cargo" <<'EOF'
#!/bin/sh -e
[ "$*" = "xtask dist" ]
ls Cargo.toml Cargo.lock rust-toolchain.toml .cargo/config.toml host/xtask/Cargo.toml deploy/check.py wit host/nn/models > /dev/null
[ ! -e target ]
cc --version > /dev/null && c++ --version > /dev/null && make --version > /dev/null && curl --version > /dev/null && git --version > /dev/null
python3 -m venv /tmp/venv
mkdir -p target/dist
cp /archive.tar.gz target/dist/weir-archive.tar.gz
EOF
        chmod +x "$rust/usr/local/bin/rustup" "$rust/usr/local/bin/cargo"
    fi
    store build --isolation chroot -q -t weir-rust "$work/rust" >/dev/null
    image --build-arg RUST=localhost/weir-rust -f "$here/Containerfile.build" "$here/../.."
fi

# The image says how it is run.
store inspect --type image weir > "$work/image.json"
for wanted in '"User": "65532:65532"' '"/opt/weir/weir"' '"STOPSIGNAL SIGTERM"\|"StopSignal": "SIGTERM"' '"8080/tcp"'; do
    grep -q -- "$wanted" "$work/image.json" || fail "the image has no $wanted"
done
grep -A4 '"Healthcheck"' "$work/image.json" | grep -q '"status"' || fail "the image has no health check"

mount=$(store mount "$(store from weir)")
port=$((20000 + RANDOM % 20000))
cat > "$work/bundle/config.json" <<EOF
{"ociVersion": "1.0.2", "hostname": "weir", "root": {"path": "$mount", "readonly": true},
 "process": {"user": {"uid": 65532, "gid": 65532}, "cwd": "/opt/weir", "capabilities": {}, "noNewPrivileges": true, "env": [],
  "args": ["/opt/weir/weir", "serve", "--listen", "0.0.0.0:$port"]},
 "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
  {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]}],
 "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]}}
EOF
# Without control groups, which crun refuses where both versions are mounted: the limits of an engine are not part of the image.
unshare --mount sh -c 'mount -t tmpfs tmpfs /sys/fs/cgroup; exec "$@"' sh \
    crun --cgroup-manager=disabled --root "$work/crun" run --bundle "$work/bundle" --pid-file "$work/pid" weir-check \
    > "$work/log" 2>&1 &
runtime=$!
ready=
for _ in $(seq 1 300); do
    kill -0 "$runtime" 2>/dev/null || fail "crun ends"
    [[ $(curl -s -m 5 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/readyz") != 200 ]] || { ready=yes; break; }
    sleep 0.2
done
[[ -n $ready ]] || fail "it is not ready"
server=$(cat "$work/pid")
for wanted in 'Uid:[[:space:]]*65532[[:space:]]*65532' 'CapEff:[[:space:]]*0000000000000000' 'NoNewPrivs:[[:space:]]*1'; do
    grep -q "^$wanted" "/proc/$server/status" || fail "the process has no $wanted"
done
inside=(nsenter --target "$server" --mount --pid --setuid 65532 --setgid 65532)
grep -q ' / [^ ]* ro[ ,]' "/proc/$server/mounts" || fail "the root can be written"
# The command of the health check, with the port of this run.
"${inside[@]}" /opt/weir/weir status --url "http://127.0.0.1:$port" >/dev/null || fail "the health check fails"
answer=$(curl -s -m 60 "http://127.0.0.1:$port/v1/classify" -H 'content-type: application/json' -d '{"inputs": "What a wonderful evening!"}')
[[ $answer == *'"label":"positive"'* ]] || fail "it answers $answer"
kill -TERM "$server"
timeout 60 tail --pid="$runtime" -f /dev/null || fail "it has not ended 60 s after SIGTERM"
wait "$runtime" || fail "it ends with $? after SIGTERM"
runtime=
of_build=
[[ $mode = copy ]] || of_build=" of Containerfile.build ($mode)"
echo "ok  image${of_build}: $(du -sm "$mount" | cut -f1) MB, Debian $(cat "$base/etc/debian_version") as base, user 65532, read-only root, no capabilities, health check, SIGTERM"
