#!/usr/bin/env bash
# Asks a DNS server for the address of a name; fails when it does not answer with one.
#   hack/dns-answers.sh SERVER NAME
set -euo pipefail
exec 3<>"/dev/udp/$1/53"
query() {
  printf '\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00'
  local IFS=. label
  for label in $2; do printf "\\x$(printf %x ${#label})%s" "$label"; done
  printf '\x00\x00\x01\x00\x01'
}
# One write is one datagram, so the message is made whole first.
message=$(mktemp)
trap 'rm -f "$message"' EXIT
query "$@" >"$message"
cat "$message" >&3
answer=$(timeout 2 dd bs=512 count=1 <&3 2>/dev/null | od -An -tx1 -v | tr -d ' \n')
exec 3>&-
# Same id, an answer, no error, at least one record.
[[ $answer == 1234* ]] && [ $((0x${answer:6:2} & 0x0f)) = 0 ] && [ $((0x${answer:12:4})) -gt 0 ]
