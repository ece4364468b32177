#!/usr/bin/env bash
# Makes the functions of the image workflows: one file (which is main.py there), a handler each.
set -euo pipefail
cd "$(dirname "$0")"
for step in verify check compress edges watermark save log; do
  kubectl func add "$step" -p steps.py --handler "main.$step" "$@"
done
