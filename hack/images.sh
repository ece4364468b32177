#!/usr/bin/env bash
# Makes the images of tests, examples and functions from what this machine has; no registry is asked.
#   skiff/busybox:1   Debian's static busybox with a link per applet
#   skiff/load:1      the same, and a web server on port 8080 that uses CPU and memory on request:
#                     /cgi-bin/higher and /cgi-bin/lower (one CPU more, one less),
#                     /cgi-bin/setload?cpu=1&memory=32&duration=60 (CPUs, MiB, seconds)
#   skiff/python:1    the same with Debian's python3 and pip: base of functions in Python
#   skiff/node:1      the same with node and npm: base of functions in Node.js
# Arguments: which of them (busybox, load, python, node); without any busybox and load, `all` is all of them.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

have() { docker image inspect "skiff/$1:1" >/dev/null 2>&1; }

# busybox_into DIR: a root with busybox and nothing else.
busybox_into() {
  local box applet dir=$1
  [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 || need busybox-static-missing busybox-static
  box=$(command -v busybox)
  mkdir -p "$dir"/{bin,etc,tmp,root,var,proc,sys,dev}
  cp "$box" "$dir/bin/busybox"
  for applet in $("$box" --list); do [ "$applet" = busybox ] || ln -sf busybox "$dir/bin/$applet"; done
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$dir/etc/passwd"
  printf 'root:x:0:\nnobody:x:65534:\n' >"$dir/etc/group"
  chmod 1777 "$dir/tmp"
}

# libraries FILE...: the shared libraries that they need, and the loader.
libraries() { ldd "$@" 2>/dev/null | grep -o '/[^ )]*' | grep -v ':$' | sort -u; }

# copy_into DIR: files named on standard input, with what they are links to. As in Debian, /lib is a link to /usr/lib.
copy_into() {
  mkdir -p "$1"/usr/{lib,lib64}
  ln -sf usr/lib usr/lib64 "$1"
  while read -r file; do [ ! -f "$file" ] || printf '%s\n' "$file"; done >"$work/files"
  { cat "$work/files"; xargs -d '\n' readlink -f <"$work/files"; } | sort -u | sed 's,^/,,' | tar -C / -c --no-recursion -T - |
    tar -C "$1" -x --keep-directory-symlink
}

# import NAME DIR CHANGE...
import() {
  local name=$1 dir=$2 change changes=()
  shift 2
  for change in "$@"; do changes+=(-c "$change"); done
  tar -C "$dir" --numeric-owner --owner 0 --group 0 -c . | docker import "${changes[@]}" - "skiff/$name:1" >/dev/null
}

make_busybox() {
  busybox_into "$work/busybox"
  import busybox "$work/busybox" 'CMD ["sh"]' 'ENV PATH=/bin'
}

# The load is a person's to ask for, over HTTP: see the list at the top.
make_load() {
  local dir=$work/load
  busybox_into "$dir"
  mkdir -p "$dir/www/cgi-bin"
  # Answers first, works behind: who asks does not wait for the load to end.
  cat >"$dir/www/cgi-bin/setload" <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
cpu=0 memory=0 duration=60
IFS='&'
for pair in $QUERY_STRING; do
  case $pair in
    cpu=[0-9]|cpu=[0-9][0-9]) cpu=${pair#*=} ;;
    memory=[0-9]|memory=[0-9][0-9]|memory=[0-9][0-9][0-9]) memory=${pair#*=} ;;
    duration=[0-9]|duration=[0-9][0-9]|duration=[0-9][0-9][0-9]) duration=${pair#*=} ;;
    *) echo "not understood: $pair"; exit 0 ;;
  esac
done
while [ "$cpu" -gt 0 ]; do
  timeout "$duration" sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null &
  cpu=$((cpu - 1))
done
if [ "$memory" -gt 0 ]; then
  (head -c "${memory}m" /dev/zero; sleep "$duration") 2>/dev/null </dev/null | tail -c "${memory}m" >/dev/null 2>&1 &
fi
echo "load: $QUERY_STRING"
END
  cat >"$dir/www/cgi-bin/higher" <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null &
echo $! >>/tmp/busy
echo "busy: $(wc -l </tmp/busy)"
END
  cat >"$dir/www/cgi-bin/lower" <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
pid=$(tail -n 1 /tmp/busy 2>/dev/null)
[ -z "$pid" ] || kill "$pid" 2>/dev/null
sed -i '$d' /tmp/busy 2>/dev/null
echo "busy: $(wc -l </tmp/busy 2>/dev/null || echo 0)"
END
  chmod +x "$dir"/www/cgi-bin/*
  import load "$dir" 'CMD ["httpd","-f","-p","8080","-h","/www"]' 'ENV PATH=/bin' 'EXPOSE 8080'
}

certificates() { need update-ca-certificates ca-certificates && echo /etc/ssl/certs/ca-certificates.crt; }

make_python() {
  local dir=$work/python version packages
  need /usr/bin/python3 python3 libpython3-stdlib
  [ -d /usr/lib/python3/dist-packages/pip ] || need pip-of-debian-missing python3-pip
  version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  packages="python$version-minimal libpython$version-minimal libpython$version-stdlib python3-minimal media-types"
  busybox_into "$dir"
  {
    for package in $packages; do dpkg -L "$package" 2>/dev/null || true; done | grep -v -e /share/ -e /test/ -e EXTERNALLY-MANAGED
    libraries "/usr/bin/python$version" "/usr/lib/python$version"/lib-dynload/*.so
    # Names of hosts are found through these, which nothing is linked with.
    ls /lib/*-linux-gnu/libnss_{dns,files}.so.2 /lib/*-linux-gnu/libresolv.so.2 2>/dev/null || true
    find /usr/lib/python3/dist-packages/{pip,setuptools,wheel,pkg_resources} /usr/lib/python3/dist-packages/_distutils_hack \
      -type f -not -path '*/__pycache__/*' 2>/dev/null || true
    certificates
  } | sort -u | copy_into "$dir"
  ln -sf "python$version" "$dir/usr/bin/python3"
  # Compiled ahead: a container's first import writes nothing and waits for nothing.
  "/usr/bin/python$version" -m compileall -q -j 0 -s "$dir" --invalidation-mode unchecked-hash "$dir/usr/lib/python$version" >/dev/null 2>&1 || true
  import python "$dir" 'CMD ["python3"]' 'ENV PATH=/usr/bin:/bin' 'ENV LANG=C.UTF-8' 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt'
}

make_node() {
  local dir=$work/node program
  need node nodejs
  program=$(readlink -f "$(command -v node)")
  busybox_into "$dir"
  {
    # Debian keeps some of the built-in modules as files of their own.
    dpkg -L nodejs 2>/dev/null | grep -e '^/usr/share/nodejs/' -e '^/usr/lib/node_modules/npm/' | grep -v -e '/docs/' -e '/man/' || true
    libraries "$program"
    ls /lib/*-linux-gnu/libnss_{dns,files}.so.2 /lib/*-linux-gnu/libresolv.so.2 2>/dev/null || true
    certificates
  } | sort -u | copy_into "$dir"
  mkdir -p "$dir/usr/bin"
  cp "$program" "$dir/usr/bin/node"
  [ ! -d "$dir/usr/lib/node_modules/npm" ] || ln -sf ../lib/node_modules/npm/bin/npm-cli.js "$dir/usr/bin/npm"
  import node "$dir" 'CMD ["node"]' 'ENV PATH=/usr/bin:/bin' 'ENV NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt'
}

[ $# -gt 0 ] || set -- busybox load
[ "$1" != all ] || set -- busybox load python node
for name in "$@"; do
  case $name in
    busybox | load | python | node) have "$name" || "make_$name" ;;
    *) fail "no image is called $name; there are busybox, load, python and node" ;;
  esac
done
