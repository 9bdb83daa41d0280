# A small virtual machine for tests that need a network card or an init of their own: where QEMU and
# a kernel come from, and how a root file system is put together. Sourced after common.sh.

VM_CACHE=$ROOT/target/vm
VM_PACKAGES=(busybox-static cpio kmod bash)

# QEMU 8 or newer, which emulates the SR-IOV card igb. Debian 12 has it in backports; the machine's own
# list of sources is left as it is.
ensure_qemu() {
  local codename apt version
  # shellcheck disable=SC1091
  codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
  if have qemu-system-x86_64; then
    version=$(qemu-system-x86_64 --version | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p')
    [ "${version:-0}" -lt 8 ] || return 0
  fi
  if [ "$codename" != bookworm ]; then
    ensure_packages qemu-system-x86
    return
  fi
  agree_to_install qemu-system-x86 "-t bookworm-backports"
  apt=$TEMP/apt
  mkdir -p "$apt/parts" "$apt/lists/partial"
  chmod -R a+rX "$TEMP"
  cat >"$apt/parts/debian.sources" <<EOS
Types: deb
URIs: ${EVENKEEL_DEBIAN_MIRROR:-http://deb.debian.org/debian}
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOS
  local own=(-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$apt/parts"
    -o Dir::State::lists="$apt/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
  apt-get "${own[@]}" -qq update || die "apt-get update failed for bookworm-backports"
  DEBIAN_FRONTEND=noninteractive apt-get "${own[@]}" -qq -y --no-install-recommends \
    -t bookworm-backports install qemu-system-x86 >/dev/null || die "apt-get could not install qemu-system-x86"
}

# Debian's kernel with all modules, unpacked beside the build: sets VM_KERNEL and VM_RELEASE.
ensure_vm_kernel() {
  local package
  package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
  if [ -z "$package" ]; then
    apt-get update -qq || die "apt-get update failed"
    package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
  fi
  [ -n "$package" ] || die "apt knows no linux-image-amd64, whose kernel the virtual machine boots"
  VM_RELEASE=${package#linux-image-}
  VM_KERNEL=$VM_CACHE/$VM_RELEASE
  [ ! -e "$VM_KERNEL/complete" ] || return 0
  mkdir -p "$VM_CACHE"
  rm -rf "$VM_KERNEL"
  mkdir "$VM_KERNEL"
  (cd "$TEMP" && { apt-get -qq download "$package" || { apt-get -qq update && apt-get -qq download "$package"; }; }) 2>/dev/null ||
    die "apt-get could not download $package"
  dpkg -x "$TEMP/${package}"_*.deb "$VM_KERNEL"
  rm "$TEMP/${package}"_*.deb
  depmod -b "$VM_KERNEL" "$VM_RELEASE"
  touch "$VM_KERNEL/complete"
}

# vm_modules ROOT MODULE...: the modules and what they need.
vm_modules() {
  local root=$1 module file
  shift
  for module in "$@"; do
    modprobe -d "$VM_KERNEL" -S "$VM_RELEASE" --show-depends "$module"
  done | awk '$1 == "insmod" { print $2 }' | sort -u | while read -r file; do
    install -D -m 644 "$file" "$root${file#"$VM_KERNEL"}"
  done
  cp "$VM_KERNEL/lib/modules/$VM_RELEASE"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$VM_RELEASE/"
  depmod -b "$root" "$VM_RELEASE"
}

# vm_programs ROOT PROGRAM...: programs by path and the libraries they are linked with.
vm_programs() {
  local root=$1 file
  shift
  for file in "$@"; do install -D "$file" "$root$file"; done
  vm_libraries "$root" "$@"
}

# vm_libraries ROOT FILE...: what the dynamic linker would load for them, under the names it asks for.
vm_libraries() {
  local root=$1 file
  shift
  ldd "$@" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\/.*ld-linux/ { print $1 }' | sort -u |
    while read -r file; do
      [ -e "$root$file" ] || install -D "$(readlink -f "$file")" "$root$file"
    done
}

# vm_dpdk ROOT DRIVER...: DPDK's drivers, each under one name, since it opens every file of the folder.
vm_dpdk() {
  local root=$1 folder driver file
  shift
  for folder in /usr/lib/*/dpdk/pmds-*; do :; done
  for driver in "$@"; do
    for file in "$folder/librte_$driver".so.*.*; do :; done
    install -D "$file" "$root$file"
    vm_libraries "$root" "$file"
  done
}

# A root with the usual folders and busybox.
vm_root() {
  local root=$1 folder
  mkdir -p "$root"
  chmod 755 "$root"
  for folder in bin sbin usr/bin usr/sbin proc sys dev run tmp etc root var/log; do mkdir -p "$root/$folder"; done
  # Debian 12 and 13 have /lib and /lib64 as links; so has this.
  mkdir -p "$root/usr/lib" "$root/usr/lib64"
  ln -s usr/lib "$root/lib"
  ln -s usr/lib64 "$root/lib64"
  ln -s ../run "$root/var/run"
  install -m 755 /bin/busybox "$root/bin/busybox"
  ln -s /bin/busybox "$root/usr/bin/env"
}

# vm_initramfs ROOT FILE
vm_initramfs() { (cd "$1" && find . | cpio --quiet -o -H newc -R 0:0) >"$2"; }
