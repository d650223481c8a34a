#!/usr/bin/env bash
# Build the image and run the cluster of compose.yaml: undisturbed, with a worker killed that holds a task, and with
# an executor as Spark on Kubernetes starts it. The results must be the same. BUILD_FLAGS are docker build's.
set -euo pipefail
cd "$(dirname "$0")/.."

compose=()
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
elif command -v docker-compose >/dev/null; then
  compose=(docker-compose)
fi
if ! docker info >/dev/null 2>&1 || ((${#compose[@]} == 0)); then
  echo "make test-docker needs a Docker engine that answers (docker info), Compose (docker compose or" \
    "docker-compose 1.29), BuildKit, 10 GB of disk and 6 GB of memory. On Debian and Ubuntu: apt-get install docker.io docker-compose" >&2
  exit 2
fi

work=$(mktemp -d)
chmod 755 "$work"
export COMPOSE_PROJECT_NAME=cxr_spark_test CXR_RUN=demo
CXR_MASTER_PORT=$((20000 + RANDOM % 10000)) CXR_HISTORY_PORT=$((30000 + RANDOM % 10000))
CXR_DRIVER_PORT=$((40000 + RANDOM % 10000))
export CXR_MASTER_PORT CXR_HISTORY_PORT CXR_DRIVER_PORT
CXR_UID=$(id -u) CXR_GID=$(id -g)
if ((CXR_UID == 0)); then CXR_UID=1000 CXR_GID=1000; fi # so that it is tried as a user who is not root
export CXR_UID CXR_GID

cluster() { "${compose[@]}" -f docker/compose.yaml "$@"; }
container() { cluster ps -a -q "$1"; }
python_in() { docker exec -i "$(container "$1")" python - "${@:2}"; }
say() { echo "$(date +%T) $*"; }
fail() {
  say "FAILED: $*" >&2
  cluster logs --no-color --tail 30 driver >&2 || true
  exit 1
}
clean() {
  docker rm -f "${COMPOSE_PROJECT_NAME}_pod" "${COMPOSE_PROJECT_NAME}_pods_driver" >/dev/null 2>&1 || true
  CXR_RUNS=$work cluster down --volumes --timeout 5 >/dev/null 2>&1 || true
}
on_exit() {
  clean
  docker run --rm --user root --entrypoint rm -v "$work:/work" cxr_spark:cpu -rf /work/undisturbed /work/killed /work/pod || true
  rmdir "$work" || true
}
trap on_exit EXIT

begin() { # begin NAME: a cluster of clean state, whose results go to $work/NAME
  clean
  export CXR_RUNS=$work/$1
  say "$1: starting"
  cluster up -d >"$work.log" 2>&1 || { cat "$work.log" >&2; fail "docker compose up"; }
  rm -f "$work.log"
  for service in master worker-1 worker-2 history; do
    health=$(docker inspect -f '{{.State.Health.Status}}' "$(container $service)")
    [[ $health == healthy ]] || fail "$service is $health"
  done
}

finish() { # finish NAME: wait for its report
  status=$(docker wait "$(container driver)")
  ((status == 0)) || fail "the driver of $1 ended with status $status"
  [[ -s $CXR_RUNS/demo/report.html ]] || fail "$1 left no report on the host"
  say "$1: report.html of $(stat -c %s "$CXR_RUNS/demo/report.html") bytes, owned by user $(stat -c %u "$CXR_RUNS/demo/report.html")"
}

lost_tasks() { # how many tasks of the finished application failed with their executor, by the history server
  python_in history <<'PYTHON'
import json, time, urllib.request

def ask(path):
    with urllib.request.urlopen(f"http://localhost:18080/api/v1/applications{path}") as answer:
        return json.load(answer)

for _ in range(60):
    applications = ask("?status=completed")
    if applications:
        break
    time.sleep(1)
(application,) = applications
failed = 0
for stage in ask(f"/{application['id']}/stages"):
    if stage["numFailedTasks"]:
        tasks = ask(f"/{application['id']}/stages/{stage['stageId']}/{stage['attemptId']}/taskList?length=10000")
        failed += sum("ExecutorLostFailure" in task.get("errorMessage", "") for task in tasks)
print(failed)
PYTHON
}

compare() { # compare A B ROWS: results and features; of B, ROWS rows, which A may have more of
  docker run --rm -i -v "$work:/work:ro" cxr_spark:cpu python - "$@" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from cxr_spark.extraction.store import list_extractions

a, b = (Path("/work") / name / "demo" for name in sys.argv[1:3])
tables = [pd.read_csv(run / "results.csv").drop(columns="train_seconds") for run in (a, b)]
keys = ["configuration", "seed"]
shared = tables[1][keys]
ours, theirs = (table.merge(shared, on=keys).sort_values(keys, ignore_index=True) for table in tables)
assert len(ours) == len(theirs) == int(sys.argv[3]), (len(ours), len(theirs))
if len(shared) < len(tables[0]):  # of fewer configurations: what compares them with one another differs
    ours, theirs = (table.drop(columns=["selected", "difference", "p_holm"]) for table in (ours, theirs))
pd.testing.assert_frame_equal(ours, theirs, rtol=0, atol=1e-6)
numbers = ours.select_dtypes("number").columns
print(f"{sys.argv[2]}: results.csv: {len(ours)} rows, largest difference {np.nanmax(np.abs(ours[numbers] - theirs[numbers]).to_numpy()):.1e}")

for extraction in list_extractions(b / "features"):
    rows = [
        pq.ParquetDataset(run / "features" / extraction.fingerprint).read(columns=["image_id", "pooled"]).to_pandas()
        .sort_values("image_id", ignore_index=True)
        for run in (a, b)
    ]
    assert list(rows[0]["image_id"]) == list(rows[1]["image_id"])
    pooled = [np.stack(table["pooled"]) for table in rows]
    distance = np.linalg.norm(pooled[0] - pooled[1], axis=1) / np.linalg.norm(pooled[0], axis=1)
    assert distance.max() <= 1e-5, distance.max()
    print(f"{sys.argv[2]}: features {extraction.fingerprint}: {len(rows[0])} rows, largest relative difference {distance.max():.1e}")
PYTHON
}

say "build"
# shellcheck disable=SC2086
DOCKER_BUILDKIT=1 docker build --quiet ${BUILD_FLAGS:-} -f docker/Dockerfile --target cpu -t cxr_spark:cpu . >/dev/null
say "image: $(($(docker inspect -f '{{.Size}}' cxr_spark:cpu) / 1000000)) MB"
[[ $(docker run --rm cxr_spark:cpu id -u) == 1000 ]] || fail "the image runs as root"
docker run --rm cxr_spark:cpu sh -c '! command -v gcc && ! command -v pip' || fail "the image holds tools of the build"

begin undisturbed
finish undisturbed

begin killed
driver=$(container driver)
# The address of an executor that holds a task of extraction, as Spark's pages call its stage, for a second already.
address=$(python_in driver <<'PYTHON'
import datetime, json, time, urllib.request

def ask(path):
    with urllib.request.urlopen(f"http://localhost:4040/api/v1/applications{path}") as answer:
        return json.load(answer)

def seconds_since(moment):
    began = datetime.datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S.%fGMT").replace(tzinfo=datetime.timezone.utc)
    return (datetime.datetime.now(datetime.timezone.utc) - began).total_seconds()

def extracting():
    (application,) = ask("")
    for stage in ask(f"/{application['id']}/stages?status=active"):
        if not stage.get("description", "").startswith("extracting features"):
            continue
        tasks = ask(f"/{application['id']}/stages/{stage['stageId']}/{stage['attemptId']}/taskList?status=running")
        for task in tasks:
            if task["status"] == "RUNNING" and seconds_since(task["launchTime"]) > 1:
                return task["host"]

until = time.monotonic() + 240
while time.monotonic() < until:
    try:
        if address := extracting():
            print(address)
            break
    except (OSError, ValueError):  # before it listens, and while it says that Spark is starting up
        pass
    time.sleep(0.1)
PYTHON
)
victim=
for service in worker-1 worker-2; do
  if [[ $(docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$(container $service)") == "$address" ]]; then
    victim=$service
  fi
done
[[ -n $victim ]] || fail "no worker of address '$address' holds a task"
docker kill "$(container $victim)" >/dev/null
say "killed: $victim"
[[ $(docker inspect -f '{{.State.Running}}' "$driver") == true ]] || fail "the driver was done before $victim was killed"
finish killed
lost=$(lost_tasks)
((lost > 0)) || fail "$victim held no task when it was killed"
say "killed: $lost task(s) were lost with $victim and done again"
compare undisturbed killed 12

# A driver and an executor as pods have them: their arguments, environment, and a user whom the image does not know.
# Kubernetes is not there: a master without workers lets the driver wait for an executor that comes by itself.
clean
export CXR_RUNS=$work/pod
say "pod: starting"
cluster up -d master >/dev/null 2>&1
network=$(docker inspect -f '{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}' "$(container master)")
options=(-e SPARK_JAVA_OPT_0=-Dspark.driver.port=7078)
for package in java.lang java.lang.invoke java.lang.reflect java.io java.net java.nio java.util java.util.concurrent \
  java.util.concurrent.atomic sun.nio.ch sun.nio.cs sun.security.action sun.util.calendar; do
  options+=(-e "SPARK_JAVA_OPT_$((${#options[@]} / 2))=--add-opens=java.base/$package=ALL-UNNAMED")
done
common=(--network "$network" --user 23456:0 -v "$work/pod:/runs")
docker run --rm --user root --entrypoint chmod -v "$work/pod:/runs" cxr_spark:cpu 777 /runs
docker run -d --name "${COMPOSE_PROJECT_NAME}_pods_driver" --hostname pods-driver --network-alias pods-driver "${common[@]}" \
  -e SPARK_DRIVER_BIND_ADDRESS=0.0.0.0 cxr_spark:cpu driver --properties-file conf/spark-compose.conf \
  --conf spark.scheduler.minRegisteredResourcesRatio=0 --conf spark.driver.host=pods-driver --conf spark.driver.port=7078 \
  --conf spark.eventLog.enabled=false --conf spark.ui.enabled=false \
  jobs/grid.py --config conf/demo.yaml --run /runs/demo --backbones MobileNetV3Small --heads gap >/dev/null
docker exec -i "${COMPOSE_PROJECT_NAME}_pods_driver" python - <<'PYTHON'
import socket, time

for _ in range(600):
    try:
        socket.create_connection(("pods-driver", 7078)).close()
        break
    except OSError:
        time.sleep(0.1)
PYTHON
docker run -d --name "${COMPOSE_PROJECT_NAME}_pod" --hostname pod-1 --network-alias pod-1 "${common[@]}" \
  -e SPARK_DRIVER_URL=spark://CoarseGrainedScheduler@pods-driver:7078 -e SPARK_EXECUTOR_ID=1 -e SPARK_EXECUTOR_CORES=1 \
  -e SPARK_EXECUTOR_MEMORY=1g -e SPARK_APPLICATION_ID=pods -e SPARK_EXECUTOR_POD_IP=pod-1 \
  -e SPARK_EXECUTOR_POD_NAME=pod-1 -e SPARK_RESOURCE_PROFILE_ID=0 "${options[@]}" cxr_spark:cpu executor >/dev/null
status=$(docker wait "${COMPOSE_PROJECT_NAME}_pods_driver")
if ((status != 0)); then
  docker logs --tail 30 "${COMPOSE_PROJECT_NAME}_pods_driver" >&2
  docker logs --tail 30 "${COMPOSE_PROJECT_NAME}_pod" >&2
  fail "the driver of pod ended with status $status"
fi
compare undisturbed pod 3
say "all as expected"
