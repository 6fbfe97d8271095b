#!/usr/bin/env bash
# Builds the image of an archive of `cargo xtask dist` with buildah, and runs it as a container would: as its user, without capabilities, with
# a read-only root. The base is this machine's C library instead of the registry's image, so no network is needed. Needs root and
# Debian's buildah and curl.
#
#   deploy/container/check.sh target/dist/weir-0.1.0-x86_64-unknown-linux-gnu.tar.gz
set -euo pipefail
archive=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
server=
finish() {
    [[ -z $server ]] || kill "$server" 2>/dev/null || true
    umount "$work/root/proc" "$work/root" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
fail() { echo "image: $*" >&2; cat "$work/log" 2>/dev/null >&2; exit 1; }
store() { buildah --storage-driver vfs --root "$work/store" --runroot "$work/run" "$@"; }

# The base: what the program links, and nothing else.
base=$work/base/rootfs
mkdir -p "$base/etc" "$base/tmp" "$base/proc" "$work/image/weir" "$work/root"
tar -xzf "$archive" -C "$work/image/weir" --strip-components=1
for library in $(ldd "$work/image/weir/weir" | grep -o '/[^ ]*'); do
    mkdir -p "$base$(dirname "$library")"
    cp -L "$library" "$base$library"
done
printf 'FROM scratch\nCOPY rootfs /\n' > "$work/base/Containerfile"
store build --isolation chroot -q -t weir-base "$work/base" >/dev/null
store build --isolation chroot -q --format docker --build-arg BASE=localhost/weir-base -f "$here/Containerfile" -t weir "$work/image" >/dev/null

# The image says how it is run.
store inspect --type image weir > "$work/image.json"
for wanted in '"User": "65532:65532"' '"/opt/weir/weir"' '"STOPSIGNAL SIGTERM"\|"StopSignal": "SIGTERM"' '"8080/tcp"'; do
    grep -q -- "$wanted" "$work/image.json" || fail "the image has no $wanted"
done
grep -A4 '"Healthcheck"' "$work/image.json" | grep -q '"status"' || fail "the image has no health check"

container=$(store from weir)
mount=$(store mount "$container")
mount --bind "$mount" "$work/root"
mount -o remount,bind,ro "$work/root"
mount -t proc proc "$work/root/proc"
touch "$work/root/tmp/file" 2>/dev/null && fail "the root can be written"
port=$((20000 + RANDOM % 20000))
# chroot needs its capability, and gives all up with the user.
inside=(env -i /usr/sbin/chroot --userspec=65532:65532 "$work/root" /opt/weir/weir)
"${inside[@]}" serve --listen "0.0.0.0:$port" > "$work/log" 2>&1 &
server=$!
ready=
for _ in $(seq 1 300); do
    [[ $(curl -s -m 5 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/readyz") != 200 ]] || { ready=yes; break; }
    sleep 0.2
done
[[ -n $ready ]] || fail "it is not ready"
grep -q '^Uid:[[:space:]]*65532[[:space:]]*65532' "/proc/$server/status" || fail "it runs as another user"
grep -q '^CapEff:[[:space:]]*0000000000000000' "/proc/$server/status" || fail "it has capabilities"
"${inside[@]}" status --url "http://127.0.0.1:$port" >/dev/null || fail "the health check fails"
answer=$(curl -s -m 60 "http://127.0.0.1:$port/v1/classify" -H 'content-type: application/json' -d '{"inputs": "What a wonderful evening!"}')
[[ $answer == *'"label":"positive"'* ]] || fail "it answers $answer"
kill -TERM "$server"
timeout 60 tail --pid="$server" -f /dev/null || fail "it has not ended 60 s after SIGTERM"
wait "$server" || fail "it ends with $? after SIGTERM"
server=
echo "ok  image: $(du -sm "$mount" | cut -f1) MB, user 65532, read-only root, no capabilities, health check, SIGTERM"
