# Shared by the scripts that a person runs: messages, packages, huge pages, and cleaning up.
# Sourced, never run. The one who sources it has set -euo pipefail.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Exported: what was agreed to for one script holds for those that it calls.
export YES=${YES:-no}

say()  { printf '%s\n' "$*"; }
die()  { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

need_root() {
  [ "$(id -u)" -eq 0 ] || die "needs root for network namespaces and TAP devices: run it with sudo"
}

need_cargo() {
  # sudo drops the caller's PATH; rustup's usual place is tried before giving up.
  if ! have cargo && [ -x "$(invoker_home)/.cargo/bin/cargo" ]; then
    export RUSTUP_HOME=${RUSTUP_HOME:-$(invoker_home)/.rustup}
    PATH=$(invoker_home)/.cargo/bin:$PATH
    export PATH
  fi
  have cargo || die "cargo is not there: install Rust 1.90 or newer with rustup, then run this again"
}

invoker_home() { getent passwd "${SUDO_USER:-$(id -un)}" | cut -d: -f6; }

# The names of the integration tests, one a line.
test_targets() {
  cargo metadata --locked --no-deps --format-version 1 |
    jq -r '.packages[].targets[] | select(.kind == ["test"]) | .name' | sort
}

# --- cleaning up: what on_exit was told, last first, whatever ends the script ------------------
CLEANUP=()
on_exit() { CLEANUP+=("$*"); }

clean_up() {
  local status=$? index
  trap '' INT TERM      # a second Ctrl-C must not leave half of it behind
  trap - EXIT
  set +e
  for ((index = ${#CLEANUP[@]} - 1; index >= 0; index--)); do
    eval "${CLEANUP[index]}" >/dev/null 2>&1
  done
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A folder that goes when the script ends: TEMP.
make_temp() {
  TEMP=$(mktemp -d "${TMPDIR:-/tmp}/evenkeel.XXXXXX")
  on_exit "rm -rf --one-file-system '$TEMP'"
}

# --- packages ----------------------------------------------------------------------------------
# What builds evenkeel, and what its tests and its demonstration run.
BUILD_PACKAGES=(gcc libc6-dev make pkg-config clang libclang-dev libdpdk-dev)
LAB_PACKAGES=(iproute2 iputils-ping nginx curl util-linux procps)
TEST_PACKAGES=(dpdk-dev prometheus jq shellcheck openssl dnsmasq-base valgrind python3 systemd tshark)
# What stands on or beside the appliance in end-to-end tests.
E2E_PACKAGES=(openssh-server openssh-client bird2 keepalived)

# Installs those of the named Debian packages that are missing; asks first unless YES=yes.
ensure_packages() {
  local package missing=()
  have dpkg-query || die "is made for Debian 12 and 13; install these by hand: $*"
  for package in "$@"; do
    dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
      missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  agree_to_install "${missing[*]}"
  without_starting_services apt_install "${missing[@]}"
}

# agree_to_install PACKAGES [APT-GET-OPTIONS]: ends the script where that must not be.
agree_to_install() {
  local answer=
  say "Missing Debian packages: $1"
  [ "$(id -u)" -eq 0 ] || die "install them first: sudo apt-get install ${2:+$2 }$1"
  [ "$YES" != yes ] || return 0
  read -r -p "Install them with apt-get? [y/N] " answer </dev/tty || true
  [[ $answer == [yY]* ]] || die "cannot go on without: $1 (--yes installs without asking)"
}

apt_install() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1 && return
  # The package lists may be old, or absent on a fresh machine.
  apt-get update -qq || die "apt-get update failed (its messages are above)"
  apt-get install -qq -y --no-install-recommends "$@" >/dev/null ||
    die "apt-get could not install: $*"
}

# nginx is wanted as a program of the lab, not as a service on this machine's port 80.
without_starting_services() {
  local policy=/usr/sbin/policy-rc.d
  if [ -e "$policy" ]; then "$@"; return; fi
  on_exit "rm -f $policy"
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  "$@"
  rm -f "$policy"
}

# --- huge pages ----------------------------------------------------------------------------------
# Reserves so many MiB of 2 MiB pages where they are not free already and memory allows; gives back
# at the end what it took. DPDK programs do without, only slower, so a failure is no error.
reserve_huge_pages() {
  local pages=$(($1 / 2)) knob=/proc/sys/vm/nr_hugepages free before available
  [ "$(id -u)" -eq 0 ] && [ -w "$knob" ] || return 0
  free=$(awk '/^HugePages_Free/ {print $2}' /proc/meminfo)
  available=$(awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
  if [ "$free" -lt "$pages" ] && [ "$available" -gt $(($1 * 4)) ]; then
    before=$(cat "$knob")
    on_exit "echo \$((\$(cat $knob) - $((pages - free)))) >$knob"
    echo $((before + pages - free)) >"$knob"
  fi
  if ! grep -qs ' hugetlbfs ' /proc/mounts; then
    mkdir -p /dev/hugepages
    mount -t hugetlbfs nodev /dev/hugepages && on_exit "umount /dev/hugepages"
  fi
}
