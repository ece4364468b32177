#!/usr/bin/env bash
# Makes the images of tests and examples from what this machine has; no registry is asked.
#   skiff/busybox:1   Debian's static busybox with a link per applet
set -euo pipefail
. "$(dirname "$0")/lib.sh"
docker image inspect skiff/busybox:1 >/dev/null 2>&1 && exit 0
[ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 || need busybox-static-missing busybox-static
box=$(command -v busybox)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir"/{bin,etc,tmp,root,var,proc,sys,dev}
cp "$box" "$dir/bin/busybox"
for applet in $("$box" --list); do [ "$applet" = busybox ] || ln -sf busybox "$dir/bin/$applet"; done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$dir/etc/passwd"
printf 'root:x:0:\nnobody:x:65534:\n' >"$dir/etc/group"
chmod 1777 "$dir/tmp"
tar -C "$dir" --numeric-owner -c . | docker import -c 'CMD ["sh"]' -c 'ENV PATH=/bin' - skiff/busybox:1 >/dev/null
