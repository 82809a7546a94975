#!/usr/bin/env bash
# Generates the Python stubs beside the packages they serve; --check compares instead of writing.
set -euo pipefail
cd "$(dirname "$0")/.."
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
.venv/bin/python -m grpc_tools.protoc --proto_path=protos --plugin=.venv/bin/protoc-gen-mypy \
  --plugin=.venv/bin/protoc-gen-mypy_grpc --python_out="$out" --grpc_python_out="$out" \
  --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" $(find protos -name '*.proto' | sort)
changed=0
while read -r file; do
  if [ "${1:-}" = "--check" ]; then
    cmp --quiet "$out/$file" "$file" || { echo "$file is not what protos/ generates: run make protos"; changed=1; }
  else
    cp "$out/$file" "$file"
  fi
done < <(cd "$out" && find . -name '*_pb2*' | sed 's,^\./,,' | sort)
exit "$changed"
