#!/usr/bin/env bash
# Regenerates the committed Python stubs from the protos: proto/gen.sh [OUTPUT_DIR]
# Run by `make gen`; a test compares a fresh run with what is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${1:-client/python}
bin=$(dirname "$("$python" -c 'import sys; print(sys.executable)')")
mkdir -p "$out/kapell/_third_party"
plugins=(--plugin=protoc-gen-mypy="$bin/protoc-gen-mypy"
  --plugin=protoc-gen-mypy_grpc="$bin/protoc-gen-mypy_grpc")
"$python" -m grpc_tools.protoc -I proto/third_party "${plugins[@]}" \
  --python_out="$out/kapell/_third_party" --mypy_out=quiet:"$out/kapell/_third_party" \
  proto/third_party/buf/validate/validate.proto
"$python" -m grpc_tools.protoc -I proto -I proto/third_party "${plugins[@]}" \
  --python_out="$out" --grpc_python_out="$out" \
  --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  proto/kapell/v1/*.proto
# validate.proto has no package of its own on PyPI: ours lives inside kapell.
sed -i -E \
  -e 's/^from buf\.validate import/from kapell._third_party.buf.validate import/' \
  -e 's/^(import|from) buf\.validate\.validate_pb2/\1 kapell._third_party.buf.validate.validate_pb2/' \
  "$out"/kapell/v1/*_pb2*.py*
for package in "$out/kapell/v1" "$out/kapell/_third_party" "$out/kapell/_third_party/buf" "$out/kapell/_third_party/buf/validate"; do
  : > "$package/__init__.py"
done
