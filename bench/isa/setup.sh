#!/usr/bin/env bash
# Mesa >= 25 (RADV, llvmpipe), a Vulkan loader and the shim, in a private cache folder. Nothing of the system changes; no root needed.
# Debian with apt and cc (tested on 12, where Mesa 25 is in backports). Prints the folder. --again: anew.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${WEFT_MESA:-${XDG_CACHE_HOME:-$HOME/.cache}/weft-gpu-isa}
log() { echo "isa: $*" >&2; }
die() { log "$*"; exit 1; }

shim() { # compiled anew when its source changes
  local to=$cache/shim new
  cmp -s "$here/shim.c" "$to/shim.c" && [ -f "$to/libvulkan.so.1" ] && return
  command -v cc >/dev/null || die "no C compiler (cc) found"
  new=$(mktemp -d "$cache/shim.XXXXXX")
  cc -O1 -shared -fPIC -Wall -Wl,-soname,libvulkan.so.1 -o "$new/libvulkan.so.1" "$here/shim.c" -ldl
  cp "$here/shim.c" "$new/"
  rm -rf "$to"; mv -T "$new" "$to"
}
mkdir -p "$(dirname "$cache")"
exec 9>"$cache.lock"; flock 9 # one at a time
if [ -f "$cache/version" ] && [ "${1:-}" != --again ]; then shim; echo "$cache"; exit; fi

work=$(mktemp -d "$cache.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
log "package lists"
. "$here/apt.sh"
private_apt "$work/apt"

# The suite's own Mesa if it is new enough, else the one in backports.
version() { apt-cache madison mesa-vulkan-drivers | awk -F' *[|] *' -v s="$1/" 'index($3, s) { print $2; exit }'; }
from=$suite; v=$(version "$from")
if [ -z "$v" ] || dpkg --compare-versions "$v" lt 25; then from=$suite-backports; v=$(version "$from"); fi
[ -n "$v" ] && dpkg --compare-versions "$v" ge 25 || die "no Mesa >= 25 in $suite or $suite-backports (found: ${v:-none})"

# What apt would install for it on this machine, downloaded and unpacked instead.
need=$(apt-get install -s --no-install-recommends "mesa-vulkan-drivers/$from" | awk '$1 == "Inst" { v = $3 ~ /^\[/ ? $4 : $3; sub(/^\(/, "", v); print $2 "=" v }')
case $need in *libvulkan1=*) ;; *) need="$need libvulkan1" ;; esac
case $need in *mesa-vulkan-drivers=*) ;; *) need="$need mesa-vulkan-drivers=$v" ;; esac
log "downloads" $need
(cd "$work/apt" && apt-get -qq download $need)
mkdir "$work/root"
for deb in "$work"/apt/*.deb; do dpkg -x "$deb" "$work/root"; done
rm -rf "$work/apt"

lib=$(dirname "$(find "$work/root" -name libvulkan_lvp.so)")
libs=$cache${lib#"$work"}
for pair in lvp:libvulkan_lvp.so radeon:libvulkan_radeon.so; do
  [ -f "$lib/${pair#*:}" ] || die "this Mesa has no ${pair#*:}"
  printf '{"file_format_version":"1.0.0","ICD":{"library_path":"%s/%s","api_version":"1.3.0"}}\n' "$libs" "${pair#*:}" >"$work/${pair%%:*}.json"
  missing=$(LD_LIBRARY_PATH=$lib ldd "$lib/${pair#*:}" | awk '/not found/ { print $1 }')
  [ -z "$missing" ] || die "${pair#*:} lacks" $missing
done
echo "$libs" >"$work/libs"
echo "$v" >"$work/version"
rm -rf "$cache"; mv -T "$work" "$cache"
trap - EXIT
shim
log "Mesa $v in place ($(du -sh "$cache" | cut -f1))"
echo "$cache"
