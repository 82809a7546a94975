#!/usr/bin/env bash
# Writes the lock files anew. Needs network; run by `make lock`.
set -euo pipefail
cd "$(dirname "$0")/.."
uv="${UV:-.uv/bin/uv}"
options=(--quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade)
# The zones depend on pli itself, which is built from this tree and not locked.
zone_requirements() {
  for file in pyproject.toml "$@"; do
    python3 - "$file" <<'PY'
import sys
import tomllib

with open(sys.argv[1], "rb") as source:
    project = tomllib.load(source)["project"]
extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
print("\n".join(line for line in [*project["dependencies"], *extras] if not line.startswith("pli==")))
PY
  done
}
lock() { "$uv" pip compile "${options[@]}" -o "locks/$1.txt" - ; }
"$uv" pip compile "${options[@]}" -o locks/build.txt locks/build.in
zone_requirements packaging/server/pyproject.toml packaging/vault/pyproject.toml packaging/cli/pyproject.toml | lock runtime
constrained() { { cat; echo "-c locks/runtime.txt"; } | lock "$1"; }
zone_requirements packaging/server/pyproject.toml | constrained server
zone_requirements packaging/vault/pyproject.toml | constrained vault
{ zone_requirements packaging/server/pyproject.toml packaging/vault/pyproject.toml packaging/cli/pyproject.toml
  sed 's/^-c runtime.txt/-c locks\/runtime.txt/' locks/dev.in; } | lock dev
! grep -nE 'https?://|--index-url|--find-links' locks/*.txt
