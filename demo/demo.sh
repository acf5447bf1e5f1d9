#!/usr/bin/env bash
# Shows a real microVM from boot to deletion on a machine with nothing prepared. Everything it makes lies
# below build/ and bin/ of the checkout; it ends by itself and leaves no process and no interface.
set -euo pipefail
cd "$(dirname "$0")/.."

data=$PWD/build/demo
export BLIXARD_ADDR=unix:$data/blixard.sock
export BLIXARD_CACHE_DIR=${BLIXARD_CACHE_DIR:-$PWD/build/cache}
blixard=bin/blixard

step() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
[ -t 1 ] || step() { printf '\n==> %s\n' "$*"; }
show() { printf '$ blixard %s\n' "$*"; "$blixard" "$@"; }

sudo=
if [ "$(id -u)" != 0 ]; then
	sudo=sudo
	command -v sudo >/dev/null || { echo "error: run this as root, or install sudo" >&2; exit 1; }
fi

step "1/8 Debian packages"
missing=()
command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
[ -x /usr/sbin/mkfs.ext4 ] || missing+=(e2fsprogs)
command -v dpkg-deb >/dev/null || missing+=(dpkg)
if [ ${#missing[@]} -gt 0 ]; then
	echo "installing: ${missing[*]}"
	$sudo apt-get update -qq
	DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
	echo "all there"
fi
if ! command -v go >/dev/null; then
	echo "error: go is missing, and Debian 12's is too old: install Go 1.26 or newer from https://go.dev/dl/" >&2
	exit 1
fi

step "2/8 Build the program and the guest bundle"
make --no-print-directory bundle

cleanup() {
	"$blixard" vm delete demo --force >/dev/null 2>&1 || true
	"$blixard" node stop >/dev/null 2>&1 || true
	rm -rf "$data"
}
rm -rf "$data"
mkdir -p "$data"
trap cleanup EXIT

step "3/8 Start a node"
"$blixard" node start --data-dir "$data" --socket "$data/blixard.sock" --bundle-dir "$PWD/bin/bundle" --detach
show node status

step "4/8 Boot a microVM with a volume and wait until its guest is ready"
show volume create demo-data --size 64MiB
show vm create demo --image busybox -v demo-data:/data -- sh -c 'echo "hello from $(hostname), kernel $(uname -r)" | tee /data/hello; exec sleep 1000000'

step "5/8 Its console, and a command in it"
show vm exec demo -- sh -c 'uname -a; cat /proc/uptime'
for _ in $(seq 50); do
	[ -n "$("$blixard" vm logs demo)" ] && break
	sleep 0.1
done
show vm logs demo
show vm list

step "6/8 Kill the daemon; the microVM goes on and is taken up again"
before=$("$blixard" vm exec demo -- cat /proc/sys/kernel/random/boot_id)
kill -9 "$("$blixard" node status -o json | sed -n 's/^ *"pid": *\([0-9]*\).*/\1/p' | head -1)"
"$blixard" node start --data-dir "$data" --socket "$data/blixard.sock" --bundle-dir "$PWD/bin/bundle" --detach
for _ in $(seq 50); do
	after=$("$blixard" vm exec demo -- cat /proc/sys/kernel/random/boot_id 2>/dev/null) && break
	sleep 0.1
done
[ "$before" = "$after" ] || { echo "error: boot $before became $after" >&2; exit 1; }
echo "the same boot as before: $after"
show vm list

step "7/8 Stop and delete it; what it wrote on the volume is there for another one"
show vm stop demo
show vm delete demo
show run --rm -v demo-data:/data busybox -- cat /data/hello
show volume delete demo-data
show vm list

step "8/8 Stop the node"
"$blixard" node stop

cat <<END

That was a real microVM. To go on:
  bin/blixard node start --detach        # a node that stays
  bin/blixard run busybox -- uname -a    # a command in a microVM of its own
  bin/blixard run -it busybox            # a shell in one
  bin/blixard vm --help
END
