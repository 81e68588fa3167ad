#!/usr/bin/env bash
# Deletes and regenerates the committed stubs. The proto path equals the import path, so nothing is rewritten.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${1:-libs}
find "$out/millrace/v1" "$out/millrace/internal/v1" -name '*_pb2*' -delete 2>/dev/null || true
PATH="$(cd "$(dirname "$python")" && pwd):$PATH" "$python" -m grpc_tools.protoc -I protos \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
    $(cd protos && find millrace -name '*.proto' | sort)
