#!/usr/bin/env bash
# What a container is, by its first argument:
#   master, worker ... spark://HOST:7077, history    of a standalone cluster, each in the foreground
#   driver ..., executor                             as Spark on Kubernetes starts its pods
#   anything else                                    a command, as spark-submit ... jobs/grid.py ...
set -euo pipefail

# Hadoop asks for the user's name, which a user of another number than the image's has not.
if ! getent passwd "$(id -u)" >/dev/null; then
  names=$(mktemp -d)
  echo "spark:x:$(id -u):$(id -g)::$names:/bin/false" > "$names/passwd"
  echo "spark:x:$(id -g):" > "$names/group"
  export HOME=$names NSS_WRAPPER_PASSWD=$names/passwd NSS_WRAPPER_GROUP=$names/group LD_PRELOAD=libnss_wrapper.so
fi

case ${1:-} in
  master) set -- spark-class org.apache.spark.deploy.master.Master --webui-port 8080 "${@:2}" ;;
  worker)
    set -- spark-class org.apache.spark.deploy.worker.Worker --webui-port 8081 --work-dir /tmp/work "${@:2}" ;;
  history) set -- spark-class org.apache.spark.deploy.history.HistoryServer "${@:2}" ;;
  driver)
    set -- spark-submit --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" --deploy-mode client "${@:2}" ;;
  executor)
    # SPARK_JAVA_OPT_0, SPARK_JAVA_OPT_1, ...: one option each, in order.
    mapfile -t options < <(env | sed -n 's/^SPARK_JAVA_OPT_\([0-9]*\)=/\1 /p' | sort -n | cut -d' ' -f2-)
    classes=${HADOOP_CONF_DIR:+$HADOOP_CONF_DIR:}${SPARK_CONF_DIR:-$SPARK_HOME/conf}
    classes+="${SPARK_CLASSPATH:+:$SPARK_CLASSPATH}:$SPARK_HOME/jars/*"
    classes+=${SPARK_EXTRA_CLASSPATH:+:$SPARK_EXTRA_CLASSPATH}${SPARK_DIST_CLASSPATH:+:$SPARK_DIST_CLASSPATH}
    set -- java "${options[@]}" "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" -cp "$classes" \
      org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
      --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" \
      --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP" \
      --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
    # Files from the driver land here, and Python prefers what lies here to the package that the driver sent.
    cd "$(mktemp -d)" ;;
esac
exec tini -s -- "$@"
