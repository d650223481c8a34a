#!/bin/sh
# Tells Spark which GPUs a machine has: {"name": "gpu", "addresses": ["0", "1"]}
#
# Spark runs it once, where a standalone worker starts (spark.worker.resource.gpu.discoveryScript) or an
# executor of YARN or Kubernetes (spark.executor.resource.gpu.discoveryScript), and gives up where it fails.

fail() {
    echo "gpu-discovery.sh: $1" >&2
    exit 1
}

command -v nvidia-smi >/dev/null 2>&1 ||
    fail "expected nvidia-smi on the PATH, which NVIDIA's driver brings. Received: none on $(uname -n), PATH=$PATH"

said=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>&1) ||
    fail "expected nvidia-smi to list GPUs. Received on $(uname -n): $(echo "$said" | head -n 1)"

# Indices alone: it also says in words that there are none, with exit status 0 in some versions.
addresses=$(echo "$said" | sed -n 's/^ *\([0-9][0-9]*\) *$/"\1"/p' | paste -s -d , -)
[ -n "$addresses" ] || fail "expected at least one GPU. Received from nvidia-smi on $(uname -n): $(echo "$said" | head -n 1)"

echo "{\"name\": \"gpu\", \"addresses\": [$addresses]}"
