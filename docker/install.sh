#!/usr/bin/env bash
# Install what pyproject.toml asks for, at the versions of constraints.txt, into /opt/venv: install.sh cpu|gpu
set -euo pipefail
cd /build
site=/opt/venv/lib/python3.11/site-packages

# The same TensorFlow without what it needs of CUDA is 650 MB smaller. Elsewhere than on x86-64 it has none.
case $1-$(uname -m) in
  cpu-x86_64) tensorflow='tensorflow-cpu' ;;
  cpu-*) tensorflow=tensorflow ;;
  gpu-*) tensorflow='tensorflow[and-cuda]' ;;
  *) echo "Expected cpu or gpu. Received: $1" >&2; exit 2 ;;
esac
sed -n '/^dependencies = \[/,/^\]/s/^ *"\(.*\)",$/\1/p' pyproject.toml |
  sed "s/^tensorflow\([<>=]\)/$tensorflow\1/" > requirements.txt
sed 's/^tensorflow==\(.*\)/&\ntensorflow-cpu==\1/' constraints.txt > constraints-all.txt
python3.11 -m pip --python /opt/venv/bin/python install --no-warn-script-location \
  -c constraints-all.txt -c constraints-gpu.txt -r requirements.txt

# What no job reads: headers for building against TensorFlow, libclang and TensorBoard which TensorFlow
# lists and does not import, Spark's Scala shell, its store for streaming state, examples, and tests.
# Compiled Python (.pyc) stays: each process would compile TensorFlow and Keras anew.
python3.11 -m pip --python /opt/venv/bin/python uninstall --quiet --yes \
  libclang tensorboard tensorboard-data-server
rm -rf $site/tensorflow/include $site/pyarrow/include $site/nvidia/*/include \
  $site/pyspark/jars/connect-repl $site/pyspark/jars/rocksdbjni-*.jar $site/pyspark/examples
for package in matplotlib numpy pandas pyarrow scipy sklearn; do
  find $site/$package -type d -name tests -prune -exec rm -rf {} +
done

# What is left loads.
/opt/venv/bin/python -c 'import cv2, keras, petastorm, pyspark, skops.io, sklearn.svm, tensorflow'
